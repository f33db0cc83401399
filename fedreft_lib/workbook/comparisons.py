"""All runs of a profile together: an overview, the comparisons to show, and two findings of the audit in our runs.

A comparison is a group of runs with equal values of COMPARISON: the same data, the same steps. Figures show only the
`widest` comparisons, since there may be many; `gains` has a line for each. `results` is always a table with the columns
of results.csv.
"""

import html
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from IPython.display import HTML
from torch import Tensor

from ..config import RunConfig
from ..core.aggregation import AGGREGATIONS as KINDS_OF_ABM
from ..files import write_text
from ..runs.results import Run
from . import statistics, tables
from .figures import method_labels

COMPARISON = ("benchmark", "experiment", "setup", "model", "layers", "clients", "rounds")
AXES = ("method", "aggregation", "intervention")
MEANS = ("mean", "geometric_median")  # the paper's two
REFERENCES = {  # in file names: as a method
    "untrained": "untrained", "local": "local only", "fedavg": "FedAvg", "fedreft": "FedReFT median, λ 0.3",
}  # fmt: skip
NO_COMPARISON = pd.MultiIndex.from_arrays([[], [], []], names=["comparison", "against", "method"])
METHODS = get_args(RunConfig.model_fields["method"].annotation)


def ordered(runs: Sequence[Run]) -> list[Run]:
    """Runs in the order of tables and figures: by experiment, LoReFT first, simple methods first."""

    def place(run: Run) -> tuple:
        c = run.config
        method = (METHODS.index(c.method), (*MEANS, *KINDS_OF_ABM).index(c.aggregation), str(c.mixing))
        return c.experiment, c.setup, c.intervention != "loreft", c.intervention, *method, c.rank, c.clients, c.seed

    return sorted(runs, key=place)


def overview(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each benchmark and notebook: the number of runs, and all values of their parameters."""
    names = ("benchmark", "experiment", "backbone", "setup", "method", "rank", "layers", "clients", "rounds", "seed")
    table = pd.DataFrame([{name: getattr(run.config, name) for name in names} for run in runs], columns=list(names))
    table["adapted"] = [", ".join(run.manifest.get("adapted", [])) for run in runs]
    grouped = table.assign(notebook=notebooks(table)).groupby(["benchmark", "notebook"])
    counted = grouped.agg(
        runs=("seed", "size"), experiments=("experiment", "nunique"), methods=("method", "nunique"),
        seeds=("seed", "nunique"),
    )  # fmt: skip
    return counted.join(grouped[["backbone", "setup", "adapted", "rank", "layers", "clients", "rounds"]].agg(_listed))


def notebooks(table: pd.DataFrame) -> pd.Series:
    """The notebook of each row's experiment: the beginning of its label, like "06_mixing_ablation: rank, 1"."""
    return table["experiment"].str.partition(":")[0] if len(table) else table["experiment"]


def _listed(values: pd.Series) -> str:
    found = sorted(
        set(values), key=lambda value: (isinstance(value, str), value if isinstance(value, str | int) else 0)
    )
    return ", ".join(" ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in found)


def told_apart(results: pd.DataFrame) -> pd.DataFrame:
    """Results in which no name means two runs of one seed.

    Runs that differ only in something without a column, like the learning rate, are left out. `intervention` includes
    the rank where a comparison has one method at several ranks.
    """
    tests = results[results["split"] == "test"]
    twice = tests[tests.duplicated([*tables.RUN, "client", "task", "metric", "round"])]
    keys = pd.MultiIndex.from_frame(results[list(tables.RUN)])
    results = results[~keys.isin(pd.MultiIndex.from_frame(twice[list(tables.RUN)]))]
    alike = results.groupby([*COMPARISON, *AXES, "mixing"])["rank"]
    named = results["intervention"] + " rank " + results["rank"].astype(str)
    return results.assign(intervention=results["intervention"].where(alike.transform("nunique") == 1, named))


def widest(
    results: pd.DataFrame, each: Sequence[str] = ("benchmark", "setup"), over: Sequence[str] = AXES
) -> pd.DataFrame:
    """For each value of the columns `each`, the rows of the comparison with the most different values of `over`.

    It must have two or more; of equal ones the first by name is taken.
    """
    counts = (
        results.drop_duplicates([*COMPARISON, *over]).groupby(list(COMPARISON)).size().rename("kinds").reset_index()
    )
    first = counts[counts["kinds"] > 1].sort_values("kinds", ascending=False, kind="stable").drop_duplicates(list(each))
    return results.merge(first[list(COMPARISON)], on=list(COMPARISON))


def gains(results: pd.DataFrame) -> pd.DataFrame:
    """`tables.summary` of all comparisons: a line for each experiment, setup, clients, layers and method.

    In GLUE each task is a comparison of its own; elsewhere `task` is "all".
    """
    columns = ["benchmark", "experiment", "setup", "task", "clients", "layers", "method"]
    columns += ["untrained", "trained", "gain", "sd of gain", "seeds"]
    tests = results[results["split"] == "test"]
    task = tests["task"].where(tests["benchmark"] == "glue", "all")
    parts = [
        tables.summary(part).reset_index().assign(**dict(zip((*COMPARISON, "task"), key, strict=True)))
        for key, part in tests.groupby([*COMPARISON, task])
    ]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def headings(results: pd.DataFrame) -> pd.Series:
    """The name of each row's comparison, like "glue, iid (05_glue)"."""
    return results["benchmark"] + ", " + results["setup"] + " (" + results["experiment"] + ")"


def against(scores: pd.DataFrame, reference: str) -> pd.DataFrame:
    """`statistics.against`, with `statistics.bootstrap`, in each comparison that has the reference and other methods.

    scores: as `tables.accuracies` gives them. `comparison` is the heading; in GLUE each task is a comparison, like
    "glue rte, iid (05_glue)". The comparisons of one notebook are one family.
    """
    rows = tables.values(scores, reference)
    task = (" " + rows["task"]).where(rows["benchmark"] == "glue", "")
    rows = rows.assign(comparison=headings(rows.assign(benchmark=rows["benchmark"] + task)), notebook=notebooks(rows))
    there = rows.groupby("comparison")["method"].agg(lambda found: reference in set(found) and found.nunique() > 1)
    rows = rows[rows["comparison"].isin(there.index[there.astype(bool)])]
    parts = [
        statistics.against(part, reference, "comparison").join(statistics.bootstrap(part, reference, "comparison"))
        for _, part in rows.groupby("notebook", sort=False)
    ]
    return pd.concat(parts) if parts else statistics.family(pd.DataFrame(index=NO_COMPARISON))


def keep(folder: Path, runs: Sequence[Run], results: pd.DataFrame) -> dict[str, Any]:
    """Write the small tables of all runs into `folder`. Returns the content of manifest.json: how the runs were made.

    The files are scores.csv (`tables.accuracies`: every client's score, so all means and intervals can be computed
    again), gains.csv, a table of `against` for each of REFERENCES, and manifest.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = tables.accuracies(results)
    parts = {"scores": scores, "gains": gains(results)}
    parts |= {f"against_{name}": against(scores, label).reset_index() for name, label in REFERENCES.items()}
    for name, table in parts.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.3f"))
    made = {
        name: sorted({json.dumps(run.manifest.get(name), sort_keys=True) for run in runs})
        for name in ("code", "commit", "python", "versions", "device", "threads", "dtype")
    }
    facts = {name: [json.loads(value) for value in values] for name, values in made.items()}
    counted = Counter(run.config.experiment.partition(":")[0] for run in runs)
    facts |= {"machine": platform.machine(), "cores": os.cpu_count(), "runs": dict(sorted(counted.items()))}
    write_text(folder / "manifest.json", json.dumps(facts, indent=1))
    return facts


def mixing_matrices(runs: Sequence[Run], results: pd.DataFrame, most: int = 8) -> dict[str, list[tuple[str, Tensor]]]:
    """heading -> (label, mixing matrix M of the last round) of FedAvg and FedReFT, in the comparisons of `results`.

    It takes the first seed of each comparison, without lora, and no comparison with more than `most` clients, since its
    figure would not be readable.
    """
    wanted = results[results["clients"] <= most].drop_duplicates(list(COMPARISON))[list(COMPARISON)]
    keys = set(wanted.itertuples(index=False, name=None))
    found: dict[str, dict[str, Tensor]] = {}
    for run in sorted(runs, key=lambda run: run.config.seed):
        row = run.results.head(1)
        if run.config.method not in ("fedavg", "fedreft") or run.config.intervention == "lora":
            continue
        if not row.empty and tuple(row[list(COMPARISON)].iloc[0]) in keys and len(run.mixing_matrices):
            matrices = found.setdefault(headings(row).iloc[0], {})
            matrices.setdefault(method_labels(row).iloc[0], run.mixing_matrices[-1])
    return {heading: list(matrices.items()) for heading, matrices in sorted(found.items())}


def medians_apart(runs: Sequence[Run]) -> pd.DataFrame:
    """How far GeoMedian-ABM and Mean-ABM end from each other, in pairs of runs that are otherwise equal.

    By number of clients: pairs, the largest distance of the final states over the norm of Mean-ABM's, and the largest
    difference of a client's test score, in percentage points.
    """
    found: dict[str, dict[str, Run]] = {}
    for run in runs:
        if run.config.method == "fedreft":
            rest = run.config.model_dump(mode="json", exclude={"aggregation", "experiment"})
            found.setdefault(json.dumps(rest), {})[run.config.aggregation] = run
    pairs = [[both[kind] for kind in MEANS] for both in found.values() if set(both) >= set(MEANS)]
    rows = [
        {
            "clients": median.config.clients,
            "states": float((median.states - mean.states).norm() / mean.states.norm()),
            "scores": float((median.accuracy() - mean.accuracy()).abs().max()),
        }
        for mean, median in pairs
    ]
    grouped = pd.DataFrame(rows, columns=["clients", "states", "scores"]).groupby("clients")
    return grouped.agg(**{
        "pairs of runs": ("states", "size"),
        "largest distance of states": ("states", "max"),
        "largest difference of scores": ("scores", "max"),
    })  # fmt: skip


def senders(results: pd.DataFrame) -> pd.DataFrame:
    """How many clients send in a round, and how much each sends (MB): FedAvg and All-But-Me, from the history."""
    rows = results[(results["split"] == "train") & (results["metric"] == "loss")]
    rows = rows[rows["method"].isin(("fedavg", "fedreft"))]
    sends = rows["client"].where(rows["uplink_bytes"] > 0)
    rows = rows.assign(method=method_labels(rows), sends=sends, MB=rows["uplink_bytes"] / 1e6)
    grouped = rows.groupby(["benchmark", "setup", "clients", "method"])
    return grouped.agg(**{"clients that send": ("sends", "nunique"), "MB a client and round": ("MB", "mean")})


def folded(parts: Mapping[str, pd.DataFrame]) -> HTML:
    """Tables that open with a click, each under a heading with its number of rows; numbers have two decimals."""
    style = {"index": False, "na_rep": "", "float_format": "{:.2f}".format}
    return HTML("".join(
        f"<details><summary>{html.escape(heading)} ({len(table)})</summary>{table.to_html(**style)}</details>"
        for heading, table in parts.items()
    ))  # fmt: skip


def blank(table: pd.DataFrame) -> pd.DataFrame:
    """A table for reading: two decimals, and an empty cell where there is no number."""
    return table.map(lambda value: "" if pd.isna(value) else f"{value:.2f}" if isinstance(value, float) else value)
