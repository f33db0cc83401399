"""The paper's tables and its figure of the aggregation, in the paper's layout with our runs; and the cost of scores.

Each table has three columns for a published number: "published"; "ours", only where we ran that setting (see `ledger`);
and "nearest of ours", our nearest run on any backbone, which only shows a direction. `book` is always the table of
`ledger.ledger`, and `results` a table with the columns of results.csv.
"""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from ..data.grading.metrics import PRIMARY
from ..errors import DataError
from . import sampling
from .canvas import by_panel, highest, key, panel_row, plain_logs, titled
from .ledger import is_average, published
from .looks import GREY, colour_of, looks, method_labels

SHOWN = {"value": "published", "ours": "ours", "nearest_ours": "nearest of ours"}
METHOD = ["method", "rank", "trainable (M)"]
SPREAD = ["mean", "low", "high"]
ASIDE = 50.0  # points, at most, that the methods at one x take side by side
RULES = {
    "FedAvg+LoReFT": colour_of("FedAvg"), "Mean-ABM": colour_of("FedReFT mean"),
    "GeoMedian-ABM": colour_of("FedReFT median"),
}  # fmt: skip


def table_3(book: pd.DataFrame) -> pd.DataFrame:
    """Commonsense on LLaMA-3.2-3B, Mixed Task: a row for each method and rank, its parameters and average accuracy."""
    return _rows(book, "Table 3", METHOD)


def table_5(book: pd.DataFrame) -> pd.DataFrame:
    """GLUE on RoBERTa-large, three clients: three rows for each method, a column for each task and the average."""
    rows = _of(book, "Table 5")
    table = rows.pivot(index=METHOD, columns="task", values=list(SHOWN))
    table = table.rename(columns=SHOWN, level=0).rename_axis(columns=["", "task"]).stack(0, future_stack=True)
    return table[rows["task"].unique()].reindex(rows["method"].unique(), level="method").astype(float)


def table_6(book: pd.DataFrame) -> pd.DataFrame:
    """GSM8K on LLaMA-3-8B: a row for each method."""
    return _rows(book, "Table 6", METHOD)


def figure_3(book: pd.DataFrame) -> pd.DataFrame:
    """The ablation of the aggregation (Table 1 and Figure 3), three clients: a row for each benchmark and method.

    "over FedAvg": the published number minus FedAvg's, in percentage points. For ours see `tables.against`, which is
    paired by seed.
    """
    table = _rows(book, "Table 1 / Figure 3", ["benchmark", "model", "method"])
    base = table["published"].xs("FedAvg+LoReFT", level="method")
    over = table["published"] - base.reindex(table.index.droplevel("method")).to_numpy()
    table.insert(1, "over FedAvg", over.round(2))
    return table


def draw_figure_3(book: pd.DataFrame) -> Figure:
    """`figure_3` as bars, one panel per benchmark: published in white, ours (or our nearest) in the method's colour."""
    table = figure_3(book)
    ours = table["ours"].fillna(table["nearest of ours"])
    benchmarks = table.index.unique("benchmark")
    fig, axes = panel_row(len(benchmarks), width=2.9, height=2.9)
    best = {}
    for ax, benchmark in zip(axes, benchmarks, strict=True):
        part = table.xs(benchmark)
        model, methods = part.index[0][0], part.index.get_level_values("method")
        best[benchmark] = highest(part["published"].set_axis(methods))
        colours = [RULES[method] for method in methods]
        pairs = (("published", part["published"], -0.2, "white"), ("ours", ours.xs(benchmark), 0.2, colours))
        for label, values, aside, fill in pairs:
            places = [k + aside for k in range(len(methods))]
            bars = ax.bar(places, values.fillna(0.0), 0.4, color=fill, edgecolor=colours, label=label)
            ax.bar_label(bars, ["" if pd.isna(value) else f"{value:.1f}" for value in values], padding=2, fontsize=9)
        names = [method.replace("+", "+\n").replace("-", "-\n") for method in methods]
        ax.set_xticks(range(len(methods)), names)
        ax.set(title=f"{benchmark}; published: {model}", ylabel="score (%)")
        ax.margins(y=0.15)
    nearest = bool(table["ours"].isna().any())
    ours = "our nearest run: another backbone, other data, so heights do not compare" if nearest else "ours"
    return titled(fig, f"Highest published: {by_panel(best)}", f"white: published; filled: {ours}")


def accuracy_against_cost(results: pd.DataFrame, benchmark: str) -> Figure:
    """Test score against a client's trainable numbers (without the head) and against the bytes of a run; one benchmark.

    Bytes are those that all clients sent and received together; a method that sends nothing is at 0. A third panel has
    the published averages, where FedReFT's authors print parameter counts. The backbones differ, so only the order
    within a panel has a meaning. The authors print neither bytes nor the number of rounds that would give them. Raises
    DataError where there are no test scores.
    """
    points, untrained = _points(results[results["benchmark"] == benchmark])
    printed = _printed(benchmark)
    fig, axes = panel_row(2 + (len(printed) > 0), width=4.2, height=3.4)
    for ax, x in zip(axes, ("parameters", "megabytes"), strict=False):
        _scatter(ax, points, x, untrained)
    _logarithmic(axes[0], points["parameters"])
    axes[0].set(title="ours", xlabel="trainable numbers of a client")
    sent = points.loc[points["megabytes"] > 0, "megabytes"]
    if len(sent):
        low, high = _decades(sent)
        axes[1].set_xscale("symlog", linthresh=low)  # logarithmic, but with a place for 0
        axes[1].set_xlim(-low / 2, 1.5 * high)
        plain_logs(axes[1].xaxis)
    axes[1].set(title="ours", xlabel="MB sent and received by all clients")
    key(axes[:2])
    if len(printed):
        styles = looks(label.replace("FedReFT+", "FedReFT median") for label in printed["label"])
        for style, row in zip(styles.values(), printed.itertuples(), strict=True):
            ring = {"linestyle": "none", "fillstyle": "none", "markersize": 9, "label": row.label}
            axes[2].plot(row.parameters, row.value, **ring, **style)
        _logarithmic(axes[2], printed["parameters"])
        axes[2].set(title=f"published, {printed['model'].iloc[0]}", xlabel="trainable numbers of a client")
        key(axes[2:]).set_in_layout(False)  # it stands in the empty place beside
    for ax in axes:
        ax.set_ylabel("test score (%)")
    means = points.groupby(["label", "seed"])["value"].mean().groupby("label", sort=False).mean()
    title = f"{benchmark}: highest is {highest(means)} ({means.max():.1f} %)"
    fewest = points.loc[points["parameters"] == points["parameters"].min(), "label"].unique()
    if len(fewest) == 1:
        title += f"; fewest numbers: {fewest[0]} ({means[fewest[0]]:.1f} %)"
    return titled(fig, title, f"{sampling.note(points, 'bars')}; side by side: the same place on the x axis")


def _of(book: pd.DataFrame, name: str) -> pd.DataFrame:
    """The ledger's rows of one of FedReFT's tables, with values as numbers."""
    rows = book[book["source"].str.startswith("FedReFT") & (book["table"] == name)]
    rows = rows.rename(columns={"trainable_params_millions": "trainable (M)"})
    return rows.assign(value=rows["value"].astype(float))


def _rows(book: pd.DataFrame, name: str, index: list[str]) -> pd.DataFrame:
    return _of(book, name).set_index(index)[list(SHOWN)].rename(columns=SHOWN)


def _points(results: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """(the clients' scores after the last round, with label, parameters and megabytes of their run; the mean
    untrained score).
    """
    run = ["label", "trainable_params", "experiment", "setup", "rounds", "seed"]
    rows = results.assign(label=method_labels(results))
    tests = rows[(rows["split"] == "test") & rows["metric"].isin(PRIMARY)]
    last = tests[(tests["round"] == tests["rounds"]) & (tests["round"] > 0)]
    if last.empty:
        raise DataError("these results have no test scores of a last round: nothing to draw")
    sent = rows.groupby(run, dropna=False)[["uplink_bytes", "downlink_bytes"]].sum().sum(axis=1) / 1e6
    points = sampling.of_one_seed(last.merge(sent.rename("megabytes").reset_index(), on=run))
    return points.assign(parameters=points["trainable_params"]), tests.loc[tests["round"] == 0, "value"].mean()


def _scatter(ax: Axes, points: pd.DataFrame, x: str, untrained: float) -> None:
    """One marker for each method and place on the x axis, with a bar of `sampling.spread`."""
    ax.axhline(untrained, color=GREY, linestyle="--", linewidth=1.2, label="untrained backbone")
    spreads = {place: sampling.spread(own) for place, own in points.groupby(["label", x], sort=False)}
    drawn = pd.DataFrame([(*place, *spread) for place, spread in spreads.items()], columns=["label", "place", *SPREAD])
    alike = drawn.groupby("place")["place"]  # methods at the same x would hide each other: they are drawn side by side
    many = alike.transform("size")
    drawn["aside"] = (7.0 * many).clip(upper=ASIDE) / many * (alike.cumcount() - (many - 1) / 2)  # points
    styles, dotted = looks(drawn["label"]), sampling.by_chance(points)
    drawn = drawn.fillna({"low": drawn["mean"], "high": drawn["mean"]}).assign(named=drawn["label"].duplicated())
    for row in drawn.itertuples():
        for edge in (row.low, row.high):  # limits do not include markers that are moved aside
            ax.update_datalim([(row.place, edge)])
        moved = offset_copy(ax.transData, ax.figure, x=row.aside, units="points")
        ends = [[row.mean - row.low], [row.high - row.mean]]
        style = {"capsize": 0 if dotted else 3, "elinewidth": 0.8, "transform": moved, "linestyle": "none"}
        label = "_" if row.named else row.label
        bar = ax.errorbar(row.place, row.mean, ends, label=label, **style, **styles[row.label])
        for lines in bar.lines[2]:
            lines.set_linestyle(":" if dotted else "-")


def _logarithmic(ax: Axes, values: pd.Series) -> None:
    """A logarithmic x axis with a power of ten on both sides of the values; without one it would have no labels."""
    low, high = _decades(values)
    ax.set_xscale("log")
    ax.set_xlim(0.7 * low, 1.5 * high)
    plain_logs(ax.xaxis)


def _decades(values: pd.Series) -> tuple[float, float]:
    return 10 ** math.floor(math.log10(values.min())), 10 ** math.ceil(math.log10(values.max()))


def _printed(benchmark: str) -> pd.DataFrame:
    """FedReFT's published averages of a benchmark with their parameter counts: label, model, parameters, value."""
    table = published()
    rows = table[
        table["source"].str.startswith("FedReFT rebuttal")
        & table["table"].isin(("Table 3", "Table 5", "Table 6"))
        & (table["benchmark"] == benchmark)
        & (is_average(table) | (table["table"] == "Table 6"))
    ]
    return pd.DataFrame({
        "label": [f"{row.method}, rank {row.rank}" for row in rows.itertuples()],
        "model": rows["model"],
        "parameters": 1e6 * rows["trainable_params_millions"].astype(float),
        "value": rows["value"].astype(float),
    })  # fmt: skip
