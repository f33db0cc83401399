"""One factor at a time: how one parameter changes the test score, as a table, in words and as figures.

An ablation is a factor and its levels. The tables here take `rows`: the columns of results.csv, and `factor` and
`level`, which a run was made for. All differences are in percentage points. Each level of a factor is compared with the
first one, paired by seed (see `statistics`).
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from ..data.grading.metrics import PRIMARY
from ..errors import DataError
from ..runs.results import Run
from . import statistics
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


def against_first(rows: pd.DataFrame) -> pd.DataFrame:
    """`statistics.family` of each level's gain minus that of the first level of its factor; all factors together.

    A level with other clients than the first has no pairs and no row.
    """
    scores = gains(rows).rename(columns={"level": "method", "gain": "value"})
    parts = [
        statistics.differences(part, part["method"].iloc[0], by="factor")
        for _, part in scores.groupby("factor", sort=False)
    ]
    return statistics.family(pd.concat(parts))


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """For each factor and level: trained, gain, sd of the gain over seeds, and the columns of `against_first`."""
    per_seed = gains(rows).groupby(["factor", "level", "seed"], sort=False)[["trained", "gain"]].mean()
    levels = per_seed.groupby(["factor", "level"], sort=False)
    table = levels.mean().assign(**{"sd of gain": levels["gain"].std()})
    against = against_first(rows).droplevel("against").rename_axis(["factor", "level"])
    return table.join(against)


def verdict(rows: pd.DataFrame) -> list[str]:
    """`statistics.sentences` of `against_first`, and one about the levels of a factor that have no pairs."""
    found = against_first(rows)
    lines, paired = statistics.sentences(found), set(found.droplevel("against").index)
    for factor, part in gains(rows).groupby("factor", sort=False):
        first, *others = part["level"].unique()
        apart = [level for level in others if (factor, level) not in paired]
        if apart:
            lines.append(f"{factor}: {', '.join(apart)} not paired with {first}, since the clients are others.")
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
