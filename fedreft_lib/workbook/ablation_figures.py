"""One factor at a time: how one parameter changes the test score, as a table, in words and as figures.

An ablation is a factor and its levels. The tables here take `rows`: the columns of results.csv, and `factor` and
`level`, which a run was made for. All differences are in percentage points. Each level of a factor is compared with the
first one, paired by seed (see `statistics`).
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..data.grading.metrics import PRIMARY
from ..errors import DataError
from ..runs.results import Run
from . import sampling, statistics
from .canvas import bar, key, listed, mean_line, panel_row, titled
from .figures import score_unit, test_scores
from .looks import BLACK, BLUE, GREY, looks


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
    """The results of (factor, level, run) as one table, `sampling.counted`, with the columns `factor` and `level`."""
    tables = [sampling.counted([run]).assign(factor=factor, level=level) for factor, level, run in runs]
    return pd.concat(tables, ignore_index=True)


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each (factor, level, seed, client, task): untrained, trained, the gain between them, and `questions`.

    Raises DataError where there are no test scores.
    """
    tests = rows[rows["metric"].isin(PRIMARY) & (rows["split"] == "test")].sort_values("round", kind="stable")
    if tests.empty:
        raise DataError("these results have no test scores: nothing to compare")
    order = rows[["factor", "level"]].drop_duplicates()
    grouped = tests.groupby(["factor", "level", "seed", "client", "task"], sort=False)
    table = pd.DataFrame({"untrained": grouped["value"].first(), "trained": grouped["value"].last()})
    table["gain"] = table["trained"] - table["untrained"]
    if "questions" in tests:
        table["questions"] = grouped["questions"].last()
    return sampling.of_one_seed(order.merge(table.reset_index(), on=["factor", "level"]))


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
    levels = {place: own for place, own in gains(rows).groupby(["factor", "level"], sort=False)}
    factors = list(dict.fromkeys(factor for factor, _ in levels))
    fig, (ax,) = panel_row(1, width=6.4, height=0.9 + 0.27 * (len(levels) + len(factors)))
    ticks, first, changes = [], {}, {}
    for i, ((factor, level), own) in enumerate(levels.items()):
        place = i + factors.index(factor)  # an empty row between factors
        around = _gain_of(own)
        colour = BLUE if factor in first else BLACK
        base = first.setdefault(factor, around[0])
        changes[f"{factor} {level}".rstrip()] = around[0] - base
        bar(ax, place, around, dotted=sampling.by_chance(own), fmt="o", color=colour, markersize=7)
        seeds = own.groupby("seed")["gain"].mean()
        if len(seeds) > 1:
            ax.plot(seeds, [place] * len(seeds), "|", color=colour, markersize=7)
        ticks.append((place, f"{factor}:  {level}"))
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
    ax.set_yticks(*zip(*ticks, strict=True))
    ax.set(xlabel="gain over the untrained backbone (percentage points)", ylim=(ticks[-1][0] + 0.7, -0.7))
    largest = max(changes, key=lambda name: abs(changes[name]))
    title = f"The largest change: {largest}, {changes[largest]:+.1f} points from the first of its factor"
    title = title if abs(changes[largest]) >= 0.05 else "No level differs from the first of its factor"
    whose = " (of the trained score)" if sampling.by_chance(gains(rows)) else ""
    subtitle = f"{sampling.note(gains(rows), 'bars')}{whose}; black: what the others of a factor are compared with"
    return titled(fig, title, subtitle)


def _gain_of(own: pd.DataFrame) -> tuple[float, float, float]:
    """(mean, low, high) of a level's gains. For one seed the interval is the trained score's, around the gain."""
    if own["seed"].nunique() > 1:
        return sampling.spread(own.assign(value=own["gain"]))
    mean, low, high = sampling.spread(own.assign(value=own["trained"]))
    gain = float(own["gain"].mean())
    return gain, gain + low - mean, gain + high - mean


def against_column(results: pd.DataFrame, column: str) -> Figure:
    """Test score against a numeric column, like "clients" or "rank": a line for each method, a band over the seeds."""
    trained, untrained = test_scores(results)
    styles, found = looks(trained["label"]), sorted(trained[column].unique())
    fig, (ax,) = panel_row(1, width=5.6, height=3.6)
    changes = []
    for label, chosen in trained.groupby("label", sort=False):
        mean_line(ax, chosen, column, label=label, markersize=5, **styles[label])
        means = chosen.groupby([column, "seed"])["value"].mean().groupby(column).mean()
        changes.append(f"{means.iloc[-1] - means.iloc[0]:+.1f} points with {label}")
    mean_line(ax, untrained, column, band=False, color=GREY, linestyle="--", linewidth=1.2, label="untrained backbone")
    ax.set_xscale("log", base=2)
    ax.set_xticks(found, [str(value) for value in found])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel=column, ylabel=score_unit(results))
    key([ax])
    return titled(fig, f"From {column} {found[0]} to {found[-1]}: {listed(changes)}", sampling.note(trained, "bands"))
