"""Tables of results: gains, differences between methods, and traffic.

All take a table with the columns of results.csv. Scores are in percent, differences in percentage points.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..data import cuts
from ..data.glue_sources import MISMATCHED
from ..data.grading.metrics import PRIMARY
from ..errors import DataError
from ..runs.results import Run
from . import statistics
from .figures import method_labels

RUN = (
    "experiment", "benchmark", "setup", "model", "method", "aggregation", "mixing", "intervention", "rank", "layers",
    "clients", "rounds", "seed",
)  # fmt: skip


def accuracies(results: pd.DataFrame) -> pd.DataFrame:
    """One row per (experiment, benchmark, setup, method, seed, client, task, metric), on the client's own test.

    The metrics are the tasks' primary ones (accuracy for most). "untrained" is the bare backbone (round 0), "trained"
    is the run's last round.
    """
    rows = results[results["metric"].isin(PRIMARY) & (results["split"] == "test")]
    rows = rows.assign(method=method_labels(rows)).sort_values("round", kind="stable")
    keys = ["experiment", "benchmark", "setup", "method", "seed", "client", "task", "metric"]
    grouped = rows.groupby(keys, sort=False)["value"]
    return pd.DataFrame({"untrained": grouped.first(), "trained": grouped.last()}).reset_index()


def at_best_round(results: pd.DataFrame) -> pd.DataFrame:
    """Test scores after the round that held-out scores select, as ReFT selects the epoch, and those of round 0.

    For each run and task it selects the evaluated round (with eval_every=1, all rounds are) with the best primary
    held-out score, mean over clients; of equal ones the earliest. The untrained round 0 is never selected. MNLI's
    mismatched test uses the round of the matched one. `rounds` becomes the selected round, so code that reads a run's
    last round reads this one.

    Raises DataError where a run has no held-out scores: only labelled items have them.
    """
    tests = _with_best_round(results)
    if tests["best"].isna().any():
        without = tests[tests["best"].isna()].iloc[0]
        raise DataError(
            f"no round of {without['task']} with {without['method']} has held-out scores: only labelled items are "
            "scored there, after each round with eval_every=1"
        )
    picked = tests[(tests["round"] == 0) | (tests["round"] == tests["best"])]
    return picked.assign(rounds=picked["best"].astype(int))[list(results)].reset_index(drop=True)


def _with_best_round(results: pd.DataFrame) -> pd.DataFrame:
    """The test rows, with the selected round of their run and task in the column `best` (missing if there is none)."""
    rows = results.assign(trained_on=results["task"].replace(MISMATCHED, "mnli"))
    keys = [*RUN, "trained_on"]
    held_out = rows[(rows["split"] == "held_out") & rows["metric"].isin(PRIMARY) & (rows["round"] > 0)]
    means = held_out.groupby([*keys, "round"])["value"].mean().round(6).reset_index(name="score")  # so ties stay ties
    best = means.loc[means.groupby(keys)["score"].idxmax(), [*keys, "round"]].rename(columns={"round": "best"})
    tests = rows[rows["split"] == "test"]
    return tests.merge(best, on=keys, how="left").set_index(tests.index)


def summary(results: pd.DataFrame, by: str = "setup") -> pd.DataFrame:
    """Mean over clients, then over seeds; `sd` is the standard deviation of the seeds' means (empty for one seed)."""
    per_seed = accuracies(results).groupby([by, "method", "seed"], sort=False)[["untrained", "trained"]].mean()
    per_seed["gain"] = per_seed["trained"] - per_seed["untrained"]
    grouped = per_seed.groupby([by, "method"], sort=False)
    table = grouped.mean()
    table["sd of gain"] = grouped["gain"].std()
    table["seeds"] = grouped.size()
    return table


def against(results: pd.DataFrame, reference: str, by: str = "setup") -> pd.DataFrame:
    """`statistics.against`: each method's trained score minus that of `reference`, or of the "untrained" backbone."""
    return statistics.against(values(accuracies(results), reference), reference, by)


def values(scores: pd.DataFrame, reference: str) -> pd.DataFrame:
    """`scores`, as `accuracies` gives them, with the trained score as `value`.

    "untrained" becomes one more method where it is the reference.
    """
    trained = scores.assign(value=scores["trained"])
    if reference != "untrained":
        return trained
    return pd.concat([trained, scores.assign(method="untrained", value=scores["untrained"])], ignore_index=True)


def traffic(results: pd.DataFrame, by: str = "setup") -> pd.DataFrame:
    """MB (10^6 bytes) that all clients of a run sent and received together, and a client's trainable numbers."""
    rows = results.assign(method=method_labels(results))
    runs = rows.groupby([by, "method", "seed"], sort=False)
    table = pd.DataFrame({
        "uplink MB": runs["uplink_bytes"].sum() / 1e6,
        "downlink MB": runs["downlink_bytes"].sum() / 1e6,
        "trainable numbers": runs["trainable_params"].first(),
        "training seconds": runs["seconds"].sum(),
    })  # fmt: skip
    return table.groupby([by, "method"], sort=False).mean()


def noise(questions: int, accuracy: float = 50.0) -> float:
    """Binomial standard error, in percentage points, of an accuracy (percent) on that many questions."""
    share = accuracy / 100
    return 100 * float(np.sqrt(share * (1 - share) / questions))


def cut_notes(runs: Sequence[Run]) -> list[str]:
    """A sentence about texts that were cut in these runs; [] where no text was cut."""
    cut = [run for run in runs if run.cut]
    if not cut:
        return []
    most = max(cut, key=lambda run: _number(run.cut))
    return [
        f"Not all texts fit into max_length in {len(cut)} of {len(runs)} runs; most were cut in {most.config.run_id} "
        f"(max_length={most.config.max_length}; {cuts.in_words(most.cut)})."
    ]


def _number(cut: Mapping[str, cuts.Cuts]) -> int:
    return sum(sum(counts.values()) for client in cut.values() for counts in client.values())
