"""One factor at a time: how one parameter changes the test score, as a table, in words and as figures.

An ablation is a factor and its levels. The tables here take `rows`: the columns of results.csv, and `factor` and
`level`, which a run was made for. All differences are in percentage points. Each level of a factor is compared with the
first one, paired by seed and client.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from ..data.grading.metrics import PRIMARY
from ..errors import DataError
from ..runs.results import Run
from .figures import BLACK, BLUE, GREY, mean_line, panel_row, score_unit, spread_note, test_scores, titled


def level_names(levels: Sequence[Mapping]) -> list[str]:
    """The levels of a factor in words: their differences; only the values, where one parameter differs.

    >>> level_names([{"rank": 8}, {"rank": 1}])
    ['8', '1']
    >>> level_names([{"clients": 3, "method": "fedavg"}, {"clients": 3, "aggregation": "mean"}])
    ['method fedavg', 'aggregation mean']
    """
    common = [item for item in levels[0].items() if len(levels) > 1 and all(item in level.items() for level in levels)]
    differing = [{name: level[name] for name in level if (name, level[name]) not in common} for level in levels]
    if len({tuple(level) for level in differing}) == 1 and len(differing[0]) == 1:
        return [str(value) for level in differing for value in level.values()]
    return [" and ".join(f"{name} {value}" for name, value in level.items()) for level in differing]


def rows_of(runs: Iterable[tuple[str, str, Run]]) -> pd.DataFrame:
    """The results of (factor, level, run) as one table, with the columns `factor` and `level`."""
    tables = [run.results.assign(factor=factor, level=level) for factor, level, run in runs]
    return pd.concat(tables, ignore_index=True)


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each (factor, level, seed, client, task): untrained, trained, and the gain between them.

    Raises DataError where there are no test scores.
    """
    tests = rows[rows["metric"].isin(PRIMARY) & (rows["split"] == "test")].sort_values("round", kind="stable")
    if tests.empty:
        raise DataError("these results have no test scores: nothing to compare")
    order = rows[["factor", "level"]].drop_duplicates()
    grouped = tests.groupby(["factor", "level", "seed", "client", "task"], sort=False)["value"]
    table = pd.DataFrame({"untrained": grouped.first(), "trained": grouped.last()})
    table["gain"] = table["trained"] - table["untrained"]
    return order.merge(table.reset_index(), on=["factor", "level"])


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """For each factor and level: trained, gain, sd of the gain over seeds, and the difference to the first level.

    "95 % +-" is a t-interval over the pairs (seed, client). It may be too narrow, since the clients of one seed are not
    independent. A level with other clients than the first has no pairs.
    """
    table = gains(rows)
    found = []
    for factor, part in table.groupby("factor", sort=False):
        pairs = part.pivot_table(index=["seed", "client", "task"], columns="level", values="gain", sort=False)
        first = part["level"].iloc[0]
        for level, own in part.groupby("level", sort=False):
            per_seed = own.groupby("seed")[["trained", "gain"]].mean()
            difference = (pairs[level] - pairs[first]).dropna() if level != first else pd.Series(dtype=float)
            n = len(difference)
            found.append({
                "factor": factor, "level": level, **per_seed.mean(), "sd of gain": per_seed["gain"].std(),
                "seeds": len(per_seed), "against first": difference.mean(),
                "95 % +-": stats.t.ppf(0.975, n - 1) * difference.sem() if n > 1 else float("nan"),
            })  # fmt: skip
    return pd.DataFrame(found).set_index(["factor", "level"])


def verdict(rows: pd.DataFrame) -> list[str]:
    """The result of `compared` in words, one sentence for each factor."""
    lines = []
    for factor, part in compared(rows).groupby(level="factor", sort=False):
        (_, first), *_ = part.index
        beyond = part["against first"].abs() > part["95 % +-"]
        said = [
            f"{', '.join(level for _, level in part.index[which])} {what}"
            for which, what in (
                (beyond & (part["against first"] > 0), f"above {first} by more than the noise"),
                (beyond & (part["against first"] < 0), f"below {first} by more than the noise"),
                (~beyond & part["against first"].notna(), f"not distinguishable from {first}"),
                (part["against first"].isna() & (part.index != (factor, first)), f"not paired with {first}"),
            )
            if which.any()
        ]
        lines.append(f"{factor}: " + "; ".join(said or ["one level only"]) + ".")
    return lines


def sent(rows: pd.DataFrame) -> pd.DataFrame:
    """For each factor and level: a client's trainable numbers, and the MB that all clients sent and received."""
    runs = rows.groupby(["factor", "level", "seed"], sort=False)
    table = pd.DataFrame({
        "trainable numbers": runs["trainable_params"].first(),
        "uplink MB": runs["uplink_bytes"].sum() / 1e6,
        "downlink MB": runs["downlink_bytes"].sum() / 1e6,
    })  # fmt: skip
    return table.groupby(["factor", "level"], sort=False).mean()


def by_level(rows: pd.DataFrame) -> Figure:
    """The gain of every level of every factor, in rows: the mean over seeds, its sd, and each seed."""
    per_seed = gains(rows).groupby(["factor", "level", "seed"], sort=False)["gain"].mean()
    factors = list(dict.fromkeys(per_seed.index.get_level_values("factor")))
    places = list(dict.fromkeys(per_seed.index.droplevel("seed")))
    fig, (ax,) = panel_row(1, width=6.4, height=0.9 + 0.27 * (len(places) + len(factors)))
    ticks = []
    for i, (factor, level) in enumerate(places):
        seeds = per_seed[factor, level]
        place = i + factors.index(factor)  # an empty row between factors
        spread = seeds.std() if len(seeds) > 1 else None
        colour = BLACK if i == 0 or places[i - 1][0] != factor else BLUE
        ax.errorbar(seeds.mean(), place, xerr=spread, fmt="o", color=colour, markersize=7, capsize=4, linewidth=1.8)
        ax.plot(seeds, [place] * len(seeds), "|", color=colour, alpha=0.6, markersize=7)
        ticks.append((place, f"{factor}:  {level}"))
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
    ax.set_yticks(*zip(*ticks, strict=True))
    ax.set(xlabel="gain over the untrained backbone (percentage points)", ylim=(ticks[-1][0] + 0.7, -0.7))
    subtitle = f"{spread_note(rows, 'bars')}; black: what the others of a factor are compared with"
    return titled(fig, "One change at a time: what each level gains", subtitle)


def against_column(results: pd.DataFrame, column: str, title: str) -> Figure:
    """Test score against a numeric column, like "clients" or "rank": a line for each method, a band over the seeds."""
    trained, untrained = test_scores(results)
    fig, (ax,) = panel_row(1, width=5.6, height=3.6)
    for label, chosen in trained.groupby("label", sort=False):
        mean_line(ax, chosen, column, color=chosen["colour"].iloc[0], label=label, marker="o", markersize=5)
    mean_line(ax, untrained, column, band=False, color=GREY, linestyle="--", linewidth=1.2, label="untrained backbone")
    ax.set_xscale("log", base=2)
    found = sorted(trained[column].unique())
    ax.set_xticks(found, [str(value) for value in found])
    ax.set(xlabel=column, ylabel=score_unit(results))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return titled(fig, title, spread_note(trained, "bands"))
