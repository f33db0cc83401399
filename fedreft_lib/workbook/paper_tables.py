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
from .figures import BLACK, GREY, method_colour, method_labels, panel_row, titled
from .ledger import is_average, published

SHOWN = {"value": "published", "ours": "ours", "nearest_ours": "nearest of ours"}
METHOD = ["method", "rank", "trainable (M)"]
ASIDE = 50.0  # points, at most, that the methods at one x take side by side
HOLLOW = "osD^vPX*"  # one marker for each published row
FILLED = "osD^vPX*<>hp"  # methods with the same colour have different markers
RULES = {
    "FedAvg+LoReFT": method_colour("fedavg", "none", "none"),
    "Mean-ABM": method_colour("fedreft", "mean", "fixed"),
    "GeoMedian-ABM": method_colour("fedreft", "geometric_median", "fixed"),
}


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
    fig, axes = panel_row(len(benchmarks), width=3.4, height=2.9)
    for ax, benchmark in zip(axes, benchmarks, strict=True):
        part = table.xs(benchmark)
        model, methods = part.index[0][0], part.index.get_level_values("method")
        colours = [RULES[method] for method in methods]
        pairs = (("published", part["published"], -0.2, "white"), ("ours", ours.xs(benchmark), 0.2, colours))
        for label, values, aside, fill in pairs:
            places = [k + aside for k in range(len(methods))]
            bars = ax.bar(places, values.fillna(0.0), 0.4, color=fill, edgecolor=colours, label=label)
            ax.bar_label(bars, ["" if pd.isna(value) else f"{value:.1f}" for value in values], padding=2, fontsize=8)
        ax.set_xticks(range(len(methods)), [method.replace("+", "+\n") for method in methods], fontsize=8)
        ax.set(title=f"{benchmark}; published: {model}", ylabel="score (%)")
        ax.margins(y=0.15)
    nearest = bool(table["ours"].isna().any())
    ours = "our nearest run: another backbone, other data, so heights do not compare" if nearest else "ours"
    subtitle = f"white: published; filled: {ours}"
    return titled(fig, "The aggregation's ablation, published and ours", subtitle)


def accuracy_against_cost(results: pd.DataFrame, benchmark: str) -> Figure:
    """Test score against a client's trainable numbers (without the head) and against the bytes of a run; one benchmark.

    Bytes are those that all clients sent and received together; a method that sends nothing is at 0. A third panel has
    the published averages, where FedReFT's authors print parameter counts. The backbones differ, so only the order
    within a panel has a meaning. The authors print neither bytes nor the number of rounds that would give them. Raises
    DataError where there are no test scores.
    """
    points, untrained = _points(results[results["benchmark"] == benchmark])
    printed = _printed(benchmark)
    fig, axes = panel_row(2 + (len(printed) > 0), width=4.4, height=max(3.4, 0.23 * points["label"].nunique()))
    for ax, x in zip(axes, ("parameters", "megabytes"), strict=False):
        _scatter(ax, points, x, untrained)
    _logarithmic(axes[0], points["parameters"])
    axes[0].set(title="ours", xlabel="trainable numbers of a client")
    sent = points.loc[points["megabytes"] > 0, "megabytes"]
    if len(sent):
        low, high = _decades(sent)
        axes[1].set_xscale("symlog", linthresh=low)  # logarithmic, but with a place for 0
        axes[1].set_xlim(-low / 2, 1.5 * high)
    axes[1].set(title="ours", xlabel="MB sent and received by all clients")
    if len(printed):
        for marker, row in zip(HOLLOW, printed.itertuples(), strict=False):
            style = {"color": BLACK, "fillstyle": "none", "markersize": 9, "label": row.label}
            axes[2].plot(row.parameters, row.value, marker, **style)
        _logarithmic(axes[2], printed["parameters"])
        axes[2].set(title=f"published, {printed['model'].iloc[0]}", xlabel="trainable numbers of a client")
    for ax in axes:
        ax.set_ylabel("test score (%)")
    for ax in axes[1:]:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    subtitle = "ours: mean over clients and seeds, bars one sd over seeds; side by side: the same place on the x axis"
    return titled(fig, f"What accuracy costs: {benchmark}", subtitle)


def _of(book: pd.DataFrame, name: str) -> pd.DataFrame:
    """The ledger's rows of one of FedReFT's tables, with values as numbers."""
    rows = book[book["source"].str.startswith("FedReFT") & (book["table"] == name)]
    rows = rows.rename(columns={"trainable_params_millions": "trainable (M)"})
    return rows.assign(value=rows["value"].astype(float))


def _rows(book: pd.DataFrame, name: str, index: list[str]) -> pd.DataFrame:
    return _of(book, name).set_index(index)[list(SHOWN)].rename(columns=SHOWN)


def _points(results: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """(one row for each method, size and seed; the mean untrained score)."""
    runs = ["label", "colour", "trainable_params", "experiment", "setup", "rounds", "seed"]
    rows = results.assign(
        label=method_labels(results),
        colour=[method_colour(*each) for each in results[["method", "aggregation", "mixing"]].itertuples(index=False)],
    )
    tests = rows[(rows["split"] == "test") & rows["metric"].isin(PRIMARY)]
    last = tests[(tests["round"] == tests["rounds"]) & (tests["round"] > 0)]
    if last.empty:
        raise DataError("these results have no test scores of a last round: nothing to draw")
    sent = rows.groupby(runs, sort=False, dropna=False)[["uplink_bytes", "downlink_bytes"]].sum().sum(axis=1) / 1e6
    scores = last.groupby(runs, sort=False, dropna=False).agg(
        value=("value", "mean"), trainable=("trainable_params", "first")
    )
    points = scores.assign(megabytes=sent, parameters=scores["trainable"]).reset_index()
    return points, tests.loc[tests["round"] == 0, "value"].mean()


def _scatter(ax: Axes, points: pd.DataFrame, x: str, untrained: float) -> None:
    """One marker for each method and place on the x axis: the mean over seeds, one sd as a bar."""
    ax.axhline(untrained, color=GREY, linestyle="--", linewidth=1.2, label="untrained backbone")
    method = ["label", "colour", x]
    per_seed = points.groupby([*method, "seed"], sort=False)["value"].mean()
    drawn = per_seed.groupby(level=method, sort=False).agg(["mean", "std"]).fillna(0.0).reset_index()
    alike = drawn.groupby(x)[x]  # methods at the same x would hide each other: they are drawn side by side
    many = alike.transform("size")
    drawn["aside"] = (7.0 * many).clip(upper=ASIDE) / many * (alike.cumcount() - (many - 1) / 2)  # points
    labels = drawn.drop_duplicates("label")
    markers = dict(zip(labels["label"], labels.groupby("colour").cumcount().map(FILLED.__getitem__), strict=True))
    for row in drawn.assign(place=drawn[x], named=drawn["label"].duplicated()).itertuples():
        for edge in (row.mean - row.std, row.mean + row.std):  # limits do not include markers that are moved aside
            ax.update_datalim([(row.place, edge)])
        moved = offset_copy(ax.transData, ax.figure, x=row.aside, units="points")
        style = {"fmt": markers[row.label], "color": row.colour, "capsize": 3, "transform": moved}
        bar = ax.errorbar(row.place, row.mean, row.std, label="_" if row.named else row.label, **style)
        for line in (*bar.lines[1], *bar.lines[2]):  # faint, or many bars would hide the markers
            line.set_alpha(0.3)


def _logarithmic(ax: Axes, values: pd.Series) -> None:
    """A logarithmic x axis with a power of ten on both sides of the values; without one it would have no labels."""
    low, high = _decades(values)
    ax.set_xscale("log")
    ax.set_xlim(0.7 * low, 1.5 * high)


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
