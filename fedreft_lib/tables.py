"""Tables of results: what was gained, what differs beyond noise, what was sent.

All take a table with the columns of results.csv and count in percentage points.
"""

import numpy as np
import pandas as pd
from scipy import stats

from .figures import method_labels
from .metrics import PRIMARY


def accuracies(results: pd.DataFrame) -> pd.DataFrame:
    """One row per (experiment, setup, method, seed, client, task, metric): untrained and trained, on the client's test.

    The metrics are the tasks' primary ones (accuracy for most). "untrained" is the bare backbone (round 0), "trained"
    the run's last round.
    """
    rows = results[results["metric"].isin(PRIMARY) & (results["split"] == "test")]
    rows = rows.assign(method=method_labels(rows)).sort_values("round", kind="stable")
    keys = ["experiment", "benchmark", "setup", "method", "seed", "client", "task", "metric"]
    grouped = rows.groupby(keys, sort=False)["value"]
    return pd.DataFrame({"untrained": grouped.first(), "trained": grouped.last()}).reset_index()


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
    """Each method minus `reference`, paired by seed and client, with a 95 % t-interval over the pairs.

    Clients of one seed are not independent of each other, so the interval is if anything too narrow: a difference
    inside it is no difference, one just outside it is a hint.
    """
    trained = accuracies(results)
    table = trained.pivot_table(index=[by, "seed", "client", "task"], columns="method", values="trained", sort=False)
    rows = []
    for group, part in table.groupby(level=by, sort=False):
        for method in part.columns.drop(reference):
            difference = (part[method] - part[reference]).dropna()
            if difference.empty:
                continue
            n = len(difference)
            half = stats.t.ppf(0.975, n - 1) * difference.std() / np.sqrt(n) if n > 1 else np.nan
            rows.append({by: group, "method": method, "difference": difference.mean(), "95 % +-": half, "pairs": n})
    found = pd.DataFrame(rows).set_index([by, "method"])
    return found.assign(beyond_noise=found["difference"].abs() > found["95 % +-"])


def verdict(results: pd.DataFrame, reference: str, by: str = "setup") -> list[str]:
    """What `against` says, in a sentence for each group."""
    lines = []
    for group, part in against(results, reference, by).groupby(level=by, sort=False):
        better = [m for (_, m), row in part.iterrows() if row["beyond_noise"] and row["difference"] > 0]
        worse = [m for (_, m), row in part.iterrows() if row["beyond_noise"] and row["difference"] < 0]
        same = [m for (_, m), row in part.iterrows() if not row["beyond_noise"]]
        said = [
            f"{', '.join(methods)} {what}"
            for methods, what in (
                (better, f"above {reference} by more than the noise"),
                (worse, f"below {reference} by more than the noise"),
                (same, f"not distinguishable from {reference}"),
            )
            if methods
        ]
        lines.append(f"{group}: " + "; ".join(said) + ".")
    return lines


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
    """Standard error, in percentage points, of an accuracy (percent) measured on that many questions (binomial)."""
    share = accuracy / 100
    return 100 * float(np.sqrt(share * (1 - share) / questions))
