"""The ledger: one row for every published number, with our number where we ran that setting, else with a reason.

The column `ours` has a number only if backbone, method, task, metric and rank are the published ones, and also the
number of clients and the Mixed Task setup where the source prints them. The sources do not print lambda, rounds,
positions and learning rate, so these cannot be compared: `our_setting` says what we used. All other runs of the same
benchmark, method and task go to `nearest_ours`, which shows a direction and reproduces nothing.

An average counts only over all its tasks, each measured in the same setting with the same seed. Where a source does not
name the tasks of an average, no run can match it: `nearest_ours` is then the mean over the tasks in `nearest_setting`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

import pandas as pd

from ..data.grading.metrics import PRIMARY
from ..files import write_text

# Our names of the published metrics, all in percent; a "mean" is over tasks with their own metrics.
METRICS = {"accuracy_percent": "accuracy", "matthews_x100": "matthews", "pearson_x100": "pearson", "mean": "accuracy"}
SETTING = (
    "experiment", "benchmark", "setup", "model", "method", "aggregation", "mixing", "intervention", "rank", "layers",
    "clients", "rounds",
)  # fmt: skip
OURS = ("ours", "ours_sd", "seeds", "our_setting", "comparable", "reason", "nearest_ours", "nearest_sd",
        "nearest_setting")  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A published method with the names of results.csv; aggregation "" where the method has no choice."""

    method: str
    intervention: str
    aggregation: str = ""


METHODS = {
    "FedReFT+": Method("fedreft", "loreft", "geometric_median"),
    "GeoMedian-ABM": Method("fedreft", "loreft", "geometric_median"),
    "Mean-ABM": Method("fedreft", "loreft", "mean"),
    "FedAvg+LoReFT": Method("fedavg", "loreft"),
    "LoReFT": Method("centralised", "loreft"),
    "DiReFT": Method("centralised", "direft"),
    "LoRA": Method("centralised", "lora"),
    "FedIT": Method("fedit", "lora"),
    "FLoRA": Method("flora", "lora"),
    "FFA-LoRA": Method("ffa", "lora"),
    "FedSA-LoRA": Method("fedsa", "lora"),
    "FedDPA-LoRA": Method("feddpa", "lora"),
    "Fed-SB": Method("fedsb", "lora"),
}
BENCHMARKS = {"commonsense": "commonsense", "arithmetic": "arithmetic", "glue": "glue", "instruct": "instruction"}
TASKS = {
    "BoolQ": "boolq", "PIQA": "piqa", "SIQA": "siqa", "HellaSwag": "hellaswag", "WinoGrande": "winogrande",
    "ARC-e": "arc_easy", "ARC-c": "arc_challenge", "OBQA": "openbookqa",
    "AQuA": "aqua", "GSM8K": "gsm8k", "MAWPS": "mawps", "SVAMP": "svamp",
    "MNLI": "mnli", "MNLI-m": "mnli", "MNLI-mm": "mnli_mm", "SST-2": "sst2", "QNLI": "qnli", "QQP": "qqp",
    "RTE": "rte", "MRPC": "mrpc", "CoLA": "cola", "STS-B": "stsb",
}  # fmt: skip
SETUPS = {"MT": "mixed"}
# The published backbones on the hub; none is packaged. "RoBERTa" (Figure 3) is printed without its size.
BACKBONES = {
    "LLaMA-3.2-3B": "meta-llama/Llama-3.2-3B",
    "LLaMA-3-8B": "meta-llama/Meta-Llama-3-8B",
    "Llama-3-8B": "meta-llama/Meta-Llama-3-8B",
    "LLaMA-2-7B": "meta-llama/Llama-2-7b-hf",
    "Llama-2-7B": "meta-llama/Llama-2-7b-hf",
    "LLaMA-7B": "yahma/llama-7b-hf",
    "RoBERTa-large": "FacebookAI/roberta-large",
    "RoBERTa-base": "FacebookAI/roberta-base",
}
DATA = {
    "glue": "the GLUE train sets are in no package",
    "arithmetic": "the train sets of the arithmetic benchmarks are in no package",
}


def published() -> pd.DataFrame:
    """Every published number, one per row; `value` and `trainable_params_millions` are text, digit for digit."""
    table = pd.read_csv(Path(__file__).with_name("published.csv"), dtype=str, keep_default_na=False)
    counts = {name: pd.to_numeric(table[name]).astype("Int64") for name in ("clients", "rank")}
    return table.assign(**counts)


def field_claims() -> pd.DataFrame:
    """What the papers of notebook 11's systems claim, one number a row; all as text.

    No backbone and no data set of theirs is ours, so no number of ours stands beside them. A source without a number
    that could be verified has a row that says so.
    """
    return pd.read_csv(Path(__file__).with_name("field_claims.csv"), dtype=str, keep_default_na=False)


def is_average(table: pd.DataFrame) -> pd.Series:
    """For each published row, whether it is an average over tasks."""
    return table["task"].str.startswith("average")


def averaged_tasks(table: pd.DataFrame, source: str, name: str) -> dict[str, str]:
    """The tasks of a published table's average, each with its metric; {} where none is named."""
    rows = table[(table["source"] == source) & (table["table"] == name) & ~is_average(table)]
    return dict(zip(rows["task"], rows["metric"], strict=True))


def ledger(results: pd.DataFrame) -> pd.DataFrame:
    """All of `published`, in its order, with the columns OURS. results: a table with the columns of results.csv.

    comparable: "same setting", "not run", or "other backbone: shown for direction only" (or rank, number of clients,
    tasks). seeds: the seeds whose mean is `ours`; ours_sd is empty for one seed. reason: "" only where `ours` has a
    number.
    """
    table, scores = published(), final_scores(results)
    kinds = scores["method"] + scores["aggregation"] + scores["intervention"]
    scores = scores.assign(breadth=kinds.groupby([scores["benchmark"], scores["experiment"]]).transform("nunique"))
    rows = pd.DataFrame([_cell(row, table, scores) for row in table.itertuples()], columns=list(OURS))
    return pd.concat([table, rows], axis=1)


def write(book: pd.DataFrame, path: Path) -> None:
    """Writes a ledger as a CSV file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, book.to_csv(index=False, float_format="%.2f"))


def final_scores(results: pd.DataFrame) -> pd.DataFrame:
    """Test scores after each run's last round, mean over clients: one row for each (SETTING, seed, task, metric).

    Runs of one experiment and seed that these columns cannot distinguish (they ablate something else, like the start or
    the local epochs) are left out, not averaged.
    """
    last = (results["split"] == "test") & results["metric"].isin(PRIMARY)
    last &= (results["round"] == results["rounds"]) & (results["round"] > 0)
    keys = [*SETTING, "seed", "task", "metric"]
    results = results.assign(experiment=results["experiment"].astype(object).fillna(""))  # read back, "" is missing
    rows = results[last]
    rows = rows[~rows.duplicated([*keys, "client"], keep=False)]
    return rows.groupby(keys, sort=False, dropna=False)["value"].mean().reset_index()


@dataclass(frozen=True)
class _Found:
    """The scores of one of our settings for a published cell: the mean over the cell's tasks, for each seed."""

    setting: Mapping
    by_seed: pd.Series
    breadth: int  # how many methods its experiment compares
    over: str  # the tasks of a mean that the source does not name; "" elsewhere

    @property
    def seeds(self) -> str:
        return " ".join(map(str, self.by_seed.index))

    @cached_property
    def text(self) -> str:
        mixing = "" if self.setting["mixing"] == "none" else ", mixing {mixing}".format(**self.setting)
        text = "{model}, {intervention} rank {rank}, layers {layers}, {setup} setup, {clients} clients, {rounds} rounds"
        label = " ({experiment})".format(**self.setting) if self.setting["experiment"] else ""
        return text.format(**self.setting) + mixing + self.over + label

    def agreement(self, row) -> dict[str, bool]:
        """Whether it has the row's backbone, rank and clients. A rank that is not printed never agrees."""
        pooled = row.setup == "centralised" or pd.isna(row.clients)
        return {
            "backbone": _same_backbone(self.setting["model"], row.model),
            "rank": not pd.isna(row.rank) and self.setting["rank"] == row.rank,
            "number of clients": pooled or self.setting["clients"] == row.clients,
        }


def _cell(row, table: pd.DataFrame, scores: pd.DataFrame) -> dict:
    """The columns OURS of one published row."""
    printed = averaged_tasks(table, row.source, row.table) if row.task.startswith("average") else {row.task: row.metric}
    wanted = {(TASKS.get(task), METRICS.get(metric)) for task, metric in printed.items()}
    runs = _runs_of(row, scores)
    empty = {"seeds": "", "our_setting": "", "nearest_setting": "", "reason": ""}

    def distance(found: _Found) -> tuple:  # never by score; all methods of a table should come from one comparison
        differs = [not agrees for agrees in found.agreement(row).values()]
        return *differs, -found.breadth, found.setting["experiment"], -len(found.by_seed), found.text

    best = None if runs.empty else min(_found(runs, wanted), key=distance, default=None)
    if best is None:
        return empty | {"comparable": "not run", "reason": _reason(row, wanted, runs, scores)}
    mean, sd = best.by_seed.mean(), best.by_seed.std()
    others = [what for what, agrees in best.agreement(row).items() if not agrees]
    if wanted and not others:
        ours = {"ours": mean, "ours_sd": sd, "seeds": best.seeds, "our_setting": best.text}
        return empty | ours | {"comparable": "same setting"}
    return empty | {
        "comparable": f"other {others[0] if others else 'tasks'}: shown for direction only",
        "reason": _reason(row, wanted, runs, scores),
        "nearest_ours": mean, "nearest_sd": sd, "nearest_setting": f"{best.text}, seeds {best.seeds}",
    }  # fmt: skip


def _runs_of(row, scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of a published row's benchmark, method and (for Mixed Task) setup, on any backbone."""
    method = METHODS.get(row.method)
    if method is None or row.metric not in METRICS:
        return scores.iloc[:0]
    chosen = (scores["benchmark"] == BENCHMARKS[row.benchmark]) & (scores["method"] == method.method)
    chosen &= scores["intervention"] == method.intervention
    if method.aggregation:
        chosen &= scores["aggregation"] == method.aggregation
    if row.setup in SETUPS:
        chosen &= scores["setup"] == SETUPS[row.setup]
    return scores[chosen]


def _found(runs: pd.DataFrame, wanted: set) -> list[_Found]:
    """The settings with a seed that has all wanted (task, metric) pairs; all accuracies where none is named."""
    kinds = pd.Series(list(zip(runs["task"], runs["metric"], strict=True)), index=runs.index, dtype=object)
    runs = runs[kinds.isin(wanted) if wanted else runs["metric"] == "accuracy"]
    found = []
    for setting, part in runs.groupby(list(SETTING), sort=False, dropna=False):
        tasks = sorted(set(part["task"]))
        per_seed = part.groupby("seed")["value"].agg(["mean", "size"])
        whole = per_seed.loc[per_seed["size"] == len(wanted or tasks), "mean"]
        over = "" if wanted else f", tasks: {', '.join(tasks)}"
        if not whole.empty:
            found.append(_Found(dict(zip(SETTING, setting, strict=True)), whole, part["breadth"].iloc[0], over))
    return found


def _same_backbone(ours: str, printed: str) -> bool:
    """Whether our backbone, from any publisher or a local folder, is the printed one."""
    return printed in BACKBONES and PurePath(ours).name.lower() == PurePath(BACKBONES[printed]).name.lower()


def _reason(row, wanted: set, runs: pd.DataFrame, scores: pd.DataFrame) -> str:
    """All reasons why we have no number for a published row."""
    if row.metric == "ratio_range":
        return "a claim about parameters, not a score: the audit recomputes it"
    reasons = []
    if row.metric not in METRICS:
        reasons.append("a win rate needs a judge model, and none is in a package")
    if row.method not in METHODS:
        reasons.append(f"{row.method} is not among the workbook's methods")
    if not wanted:
        reasons.append("the source does not name the tasks of this average")
    if pd.isna(row.rank):
        reasons.append("no rank is printed with it")
    if row.model not in BACKBONES:
        reasons.append(f"the size of {row.model} is not printed")
    elif not any(_same_backbone(model, row.model) for model in scores["model"].unique()):
        where = "gated on the hub" if BACKBONES[row.model].startswith("meta-llama/") else "only on the hub"
        reasons.append(f"backbone {BACKBONES[row.model]} is {where}, in no package, and no run here used it")
        reasons += [DATA[row.benchmark]] if row.benchmark in DATA else []
    elif not reasons:
        on_it = runs[runs["model"].map(lambda model: _same_backbone(model, row.model)).astype(bool)]
        there = set(zip(on_it["task"], on_it["metric"], strict=True))
        missing = ", ".join(task for task, _ in sorted(wanted - there))
        what = f"no run of {missing}" if missing else "no run at this rank and number of clients"
        over = f", for an average of {len(wanted)} tasks in one setting with one seed" if len(wanted) > 1 else ""
        reasons.append(f"{what} on this backbone with this method{over}")
    return "; ".join(reasons)
