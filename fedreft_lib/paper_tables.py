"""The paper's tables and its picture of accuracy against parameters, redrawn in its own layout from our runs.

Every table has, for each published number, three columns: "published"; "ours", filled only where we ran that setting
(see `ledger`); and "nearest of ours", our nearest run on whatever backbone we have, which shows a direction only.
`results` is always a table with the columns of results.csv.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from .errors import DataError
from .figures import BLACK, GREY, _panels, _titled, method_colour, method_labels
from .ledger import is_average, ledger, published
from .metrics import PRIMARY

SHOWN = {"value": "published", "ours": "ours", "nearest_ours": "nearest of ours"}
HOLLOW = "osD^vPX*"  # one marker for each published row


def table_3(results: pd.DataFrame) -> pd.DataFrame:
    """Commonsense on LLaMA-3.2-3B, Mixed Task: a row for each method and rank, its parameters and average accuracy."""
    return _rows(results, "Table 3", ["method", "rank", "trainable_params_millions"])


def table_5(results: pd.DataFrame) -> pd.DataFrame:
    """GLUE on RoBERTa-large, three clients: a row for each method, and for each task and the average three columns."""
    rows = _of(results, "Table 5")
    table = rows.pivot(index=["method", "rank", "trainable_params_millions"], columns="task", values=list(SHOWN))
    order = [(kind, task) for task in rows["task"].unique() for kind in SHOWN]
    table = table[order].reindex(rows["method"].unique(), level="method")
    table.columns = pd.MultiIndex.from_tuples([(task, SHOWN[kind]) for kind, task in order])
    return table.astype(float)


def table_6(results: pd.DataFrame) -> pd.DataFrame:
    """GSM8K on LLaMA-3-8B: a row for each method."""
    return _rows(results, "Table 6", ["method", "rank", "trainable_params_millions"])


def figure_3(results: pd.DataFrame) -> pd.DataFrame:
    """The ablation of the aggregation (Table 1 and Figure 3), three clients: a row for each benchmark and method.

    "over FedAvg": how far the published number is above FedAvg's, in percentage points. For ours see `tables.against`,
    which pairs clients and seeds.
    """
    table = _rows(results, "Table 1 / Figure 3", ["benchmark", "model", "method"])
    base = table["published"].xs("FedAvg+LoReFT", level="method")
    over = table["published"] - base.reindex(table.index.droplevel("method")).to_numpy()
    table.insert(1, "over FedAvg", over.round(2))
    return table


def accuracy_against_parameters(results: pd.DataFrame) -> Figure:
    """Test score against a client's trainable numbers without the head: ours filled, the published averages hollow.

    For each benchmark in the results one panel with ours and, where FedReFT's authors print parameter counts, one with
    theirs: the backbones differ, so that only the order within a panel means something. Raises DataError where there
    are no test scores.
    """
    points, before = _points(results)
    panels = [(benchmark, shown) for benchmark in before.index for shown in (None, _printed(benchmark))]
    panels = [(benchmark, shown) for benchmark, shown in panels if shown is None or len(shown)]
    fig, axes = _panels(len(panels), width=5.6, height=3.6)
    for ax, (benchmark, printed) in zip(axes, panels, strict=True):
        if printed is None:
            _scatter(ax, points[points["benchmark"] == benchmark], "parameters", before[benchmark])
            title = f"{benchmark}: ours"
        else:
            for marker, row in zip(HOLLOW, printed.itertuples(), strict=False):
                ax.plot(row.parameters, row.value, marker, color=BLACK, fillstyle="none", markersize=9, label=row.label)
            title = f"{benchmark}: published, {printed['model'].iloc[0]}"
        ax.set_xscale("log")
        ax.set(title=title, xlabel="trainable numbers of a client", ylabel="test score (%)")
        ax.margins(x=0.3)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    subtitle = "ours: without the head, mean over clients and seeds, bars one sd over seeds; hollow: as published"
    return _titled(fig, "What accuracy costs in trainable parameters", subtitle)


def accuracy_against_bytes(results: pd.DataFrame) -> Figure:
    """Test score against the megabytes that all clients of a run sent and received together, a panel a benchmark.

    Only ours: the published sources print neither bytes nor the number of rounds that would give them. What sends
    nothing stands at 0. Raises DataError where there are no test scores.
    """
    points, before = _points(results)
    fig, axes = _panels(len(before), width=5.6, height=3.6)
    for ax, benchmark in zip(axes, before.index, strict=True):
        chosen = points[points["benchmark"] == benchmark]
        _scatter(ax, chosen, "megabytes", before[benchmark])
        sent = chosen.loc[chosen["megabytes"] > 0, "megabytes"]
        ax.set_xscale("symlog", linthresh=sent.min() if len(sent) else 1.0)  # logarithmic, but with a place for 0
        ax.set(title=benchmark, xlabel="MB sent and received in the whole run", ylabel="test score (%)")
        ax.margins(x=0.3)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return _titled(
        fig, "What accuracy costs in bytes", "bars: one sd over seeds; side by side: the same number of bytes"
    )


def _of(results: pd.DataFrame, name: str) -> pd.DataFrame:
    """The ledger's rows of one of FedReFT's tables, numbers as numbers."""
    table = ledger(results)
    rows = table[table["source"].str.startswith("FedReFT") & (table["table"] == name)]
    return rows.assign(value=rows["value"].astype(float))


def _rows(results: pd.DataFrame, name: str, index: list[str]) -> pd.DataFrame:
    rows = _of(results, name).set_index(index)
    return rows[[*SHOWN, "nearest_setting"]].rename(columns={**SHOWN, "nearest_setting": "nearest setting"})


def _points(results: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """(one row for each benchmark, method, size and seed; the untrained score of each benchmark)."""
    runs = ["benchmark", "label", "colour", "trainable_params", "experiment", "setup", "rounds", "seed"]
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
    return points, tests[tests["round"] == 0].groupby("benchmark")["value"].mean().reindex(last["benchmark"].unique())


def _scatter(ax: Axes, points: pd.DataFrame, x: str, untrained: float) -> None:
    """One marker for each method and place on the x axis: the mean over seeds, one sd as a bar."""
    ax.axhline(untrained, color=GREY, linestyle="--", linewidth=1.2, label="untrained backbone")
    method = ["label", "colour", x]
    per_seed = points.groupby([*method, "seed"], sort=False)["value"].mean()
    drawn = per_seed.groupby(level=method, sort=False).agg(["mean", "std"]).fillna(0.0).reset_index()
    alike = drawn.groupby(x)[x]  # methods at one place would hide each other: they stand side by side around it
    drawn["aside"] = 7 * (alike.cumcount() - (alike.transform("size") - 1) / 2)  # points
    for row in drawn.assign(place=drawn[x], named=drawn["label"].duplicated()).itertuples():
        for edge in (row.mean - row.std, row.mean + row.std):  # the limits leave out markers that are moved aside
            ax.update_datalim([(row.place, edge)])
        moved = offset_copy(ax.transData, ax.figure, x=row.aside, units="points")
        label = "_" if row.named else row.label  # one entry for a method
        ax.errorbar(row.place, row.mean, row.std, fmt="o", color=row.colour, capsize=3, label=label, transform=moved)


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
