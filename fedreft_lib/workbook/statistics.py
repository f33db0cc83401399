"""Differences between methods, and what can be said of them. Every comparison in the workbook comes from here.

The unit is the seed: clients of one seed share data, start and often states, so their differences are not independent.

    d_s         the mean over clients (and their items) of method minus reference in seed s, pair by pair
    difference  the mean of d_s over n seeds
    low, high   Student's t interval of d_s, 95 %, n - 1 degrees of freedom; p is the two-sided p-value
    Holm        p-values and intervals adjusted for all comparisons of a family, see `holm`
    p (equal)   two one-sided tests (Schuirmann 1987) of a difference within +- MARGIN: below 0.05 exactly where the
                90 % interval lies within. It is adjusted for no other comparison.
    detectable  the difference that n seeds with this spread find with a probability of 80 % at 95 %, two-sided and
                before Holm (noncentral t)

A family is declared by making its table: all rows of one call. A difference outside of such tables is exploratory.
The values of `verdict` are "above" and "below" (Holm's interval excludes 0), "equal within 1 point", and else
"undecided: ...". Fewer than FEW seeds are noted as "few seeds": what they show is no claim.

Scores are in percent, differences in percentage points. `scores` is always a table with the columns `seed`, `method`
and `value`, the column that is given as `by`, and where there are such, `client`, `task` and `item`.
"""

from functools import cache

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from ..errors import DataError

ALPHA = 0.05
MARGIN = 1.0  # points
POWER = 0.8
FEW = 8  # seeds
RESAMPLES = 4000
WITHIN = ("client", "task", "item")  # what is paired within a seed, as far as the scores have it


def against(scores: pd.DataFrame, reference: str, by: str) -> pd.DataFrame:
    """All methods against the reference within each value of the column `by`, as one family: see `family`."""
    return family(differences(scores, reference, by))


def differences(scores: pd.DataFrame, reference: str, by: str) -> pd.DataFrame:
    """d_s: a row for each (by, reference, method), a column for each seed; NaN where a seed has no pair.

    A client's items have equal weight within the client, and clients have equal weight within the seed.
    Raises DataError where no score is the reference's.
    """
    paired = _paired(scores, reference, by)
    clients = [name for name in paired.index.names if name != "item"]
    seeds = paired.groupby(level=clients, sort=False).mean().groupby(level=[by, "seed"], sort=False).mean()
    parts = {(group, reference): part.droplevel(by).T for group, part in seeds.groupby(level=by, sort=False)}
    return pd.concat(parts, names=[by, "against"]).dropna(how="all")


def _paired(scores: pd.DataFrame, reference: str, by: str) -> pd.DataFrame:
    """Method minus reference: a row for each pair, a column for each other method."""
    index = list(dict.fromkeys([by, "seed", *(name for name in WITHIN if name in scores)]))  # `by` may be one of them
    table = scores.pivot_table(index=index, columns="method", values="value", sort=False)
    if reference not in table:
        raise DataError(f"no method here is {reference!r}, which the others are compared with: run it, too")
    return table.drop(columns=reference).sub(table[reference], axis=0)


def family(differences: pd.DataFrame) -> pd.DataFrame:
    """The columns of the module's docstring for each row of d_s (comparisons, seeds); all rows are one family.

    `seeds` is n and `family` the number of rows. A single seed, or seeds that all give the same difference, leave no
    spread to estimate: there is no interval then, and the row still counts in the family.
    """
    n, mean, error = differences.count(axis=1), differences.mean(axis=1), differences.sem(axis=1)
    error = error.where(error > 1e-9)  # more than what rounding leaves of equal differences
    p = pd.Series(2 * stats.t.sf((mean / error).abs(), n - 1), differences.index)
    adjusted = holm(p)
    half, half_holm = (half_width(error, n, level) for level in (ALPHA, adjusted["level"]))
    equal = np.maximum(stats.t.sf((mean + MARGIN) / error, n - 1), stats.t.cdf((mean - MARGIN) / error, n - 1))
    table = pd.DataFrame({
        "difference": mean, "low": mean - half, "high": mean + half, "p": p, "p (Holm)": adjusted["p (Holm)"],
        "low (Holm)": mean - half_holm, "high (Holm)": mean + half_holm, "p (equal)": equal,
        "detectable": [noncentrality(k) for k in n] * error, "seeds": n, "family": len(n),
        "note": ["few seeds" if k < FEW else "" for k in n],
    })  # fmt: skip
    return table.assign(verdict=[_verdict(row) for row in table.to_dict("records")])


def half_width(error: pd.Series, n: pd.Series, level: float | pd.Series = ALPHA) -> pd.Series:
    """Of Student's t interval of n means with this standard error."""
    return stats.t.isf(level / 2, n - 1) * error


def holm(p: pd.Series) -> pd.DataFrame:
    """Holm's step-down test (1979) of m hypotheses: adjusted p-values, and the level at which each one is tested.

    In the order of their p-values, i = 0, 1, ..., hypotheses are tested at ALPHA / (m - i) up to the first that is not
    rejected. Nothing is tested after it, so all that follow share its level. An interval at these levels excludes 0
    exactly where Holm rejects, that is, where p (Holm) < ALPHA; as a set the intervals are not simultaneous.
    A missing p-value counts in m and comes last.
    """
    ordered, i = p.sort_values(kind="stable"), np.arange(len(p))
    adjusted = (ordered * (len(p) - i)).cummax().clip(upper=1.0)
    rejected = (adjusted < ALPHA).sum()
    return pd.DataFrame({"p (Holm)": adjusted, "level": ALPHA / (len(p) - np.minimum(i, rejected))}).reindex(p.index)


@cache
def noncentrality(seeds: int) -> float:
    """The difference, in standard errors, that a two-sided t-test finds with the probability POWER; NaN for 1 seed."""
    if seeds < 2:
        return np.nan
    critical = stats.t.isf(ALPHA / 2, seeds - 1)
    # The lower tail is left out: it is below 1e-5 there, and SciPy's is NaN for some deltas.
    return brentq(lambda delta: stats.nct.sf(critical, seeds - 1, delta) - POWER, 0.0, 2 * critical + 2)


def _verdict(row: dict) -> str:
    if row["seeds"] == 1:
        return "undecided: one seed has no interval"
    if np.isnan(row["p"]):
        return "undecided: equal differences in all seeds have no interval"
    if row["low (Holm)"] > 0:
        return "above"
    if row["high (Holm)"] < 0:
        return "below"
    if row["p (equal)"] < ALPHA:
        return "equal within 1 point"
    return f"undecided: this design sees {row['detectable']:.1f} points"


def sentences(table: pd.DataFrame) -> list[str]:
    """The verdicts of `family` in words: a sentence for each group, with what was adjusted for."""
    lines = []
    for (group, reference), part in table.groupby(level=[0, 1], sort=False):
        alike = part.reset_index("method").groupby("verdict", sort=False)["method"].agg(", ".join)
        said = "; ".join(f"{methods} {verdict}" for verdict, methods in alike.items())
        m, fewest, most = part["family"].iloc[0], part["seeds"].min(), part["seeds"].max()
        seeds = (f"{fewest} to " if fewest < most else "") + _counted(most, "seed")
        few = ": few seeds" if fewest < FEW else ""
        adjusted = f"adjusted for {_counted(m, 'comparison')}; " if part["p"].notna().any() else ""
        lines.append(f"{group}, against {reference}: {said} ({adjusted}{seeds}{few}).")
    return lines


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def above_both(local: pd.DataFrame, fedavg: pd.DataFrame) -> pd.DataFrame:
    """Which methods are above training alone and above FedAvg, the two ends of the curve of lam.

    local, fedavg: `against` each of them. "above both ends" is true where both verdicts are "above". Both tests have to
    reject, so their pair needs no adjustment of its own (intersection-union test, Berger 1982).
    """
    ends = [table["verdict"].droplevel("against") for table in (local, fedavg)]
    both = pd.concat(ends, axis=1, join="inner", keys=["against local only", "against FedAvg"])
    return both.assign(**{"above both ends": (both == "above").all(axis=1)})


def bootstrap(scores: pd.DataFrame, reference: str, by: str) -> pd.DataFrame:
    """A check of `low` and `high` that assumes no normal distribution: percentiles of resampled differences.

    Seeds are resampled, and where the scores have items, each client's items within a seed, in pairs. With few seeds
    these intervals are too narrow. With items they are wider than without: seeds differ by their items, too.
    """
    paired, rng, found = _paired(scores, reference, by), np.random.default_rng(0), {}
    clients = [name for name in paired.index.names if name in ("seed", "client", "task")]
    for group, part in paired.groupby(level=by, sort=False):
        for method in paired:
            seeds = [
                np.mean([_resampled(items.to_numpy(), rng) for _, items in own.groupby(level=clients)], axis=0)
                for _, own in part[method].dropna().groupby(level="seed")
            ]
            shape = (RESAMPLES, len(seeds))
            if len(seeds) > 1:
                drawn = np.stack(seeds)[rng.integers(len(seeds), size=shape), rng.integers(RESAMPLES, size=shape)]
                found[group, reference, method] = np.percentile(drawn.mean(axis=1), [50 * ALPHA, 100 - 50 * ALPHA])
    index = pd.MultiIndex.from_tuples(found, names=[by, "against", "method"])
    return pd.DataFrame(list(found.values()), index, ["low (bootstrap)", "high (bootstrap)"], dtype=float)


def _resampled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """values (items,) -> (RESAMPLES,), means of as many draws with replacement: counts of each different value."""
    different, counts = np.unique(values, return_counts=True)
    return rng.multinomial(len(values), counts / len(values), size=RESAMPLES) @ different / len(values)
