"""The workbook's figures: each function takes plain tables or tensors and returns a matplotlib Figure.

`results` is a table with the columns of results.csv (`runs.results.RESULTS`), of one or more runs, with the column
`questions` where it comes from `sampling.counted`. Round 0 is the untrained backbone, and a run's last round has its
trained states. A figure's second line says what it averages: first over the clients of a run, then over seeds. Bars and
bands are one standard deviation over seeds; for one seed they are dotted, and show how far chance in the test questions
moves a score. A method has the same colour in every figure, see `looks`.
"""

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure
from torch import Tensor

from ..core.aggregation import all_but_me
from ..data.grading.metrics import PRIMARY
from ..errors import DataError
from . import sampling
from .canvas import (
    SHOWN_DPI,
    bar,
    by_panel,
    highest,
    key,
    label_rows,
    listed,
    mean_line,
    panel_row,
    side_by_side,
    titled,
)
from .looks import AGGREGATES, BLACK, CYCLE, GREY, MARKERS, colour_of, looks, method_labels


def show(fig: Figure, alt: str, name: str | Path | None = None) -> None:
    """Show a figure in the notebook, with `alt` as text for readers who cannot see it; `name` also writes a PNG."""
    if name is not None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(_png(fig))
    display({"text/html": image(fig, alt), "text/plain": alt}, raw=True)  # JupyterLab drops the text of a plain image


def image(fig: Figure, alt: str) -> str:
    """The figure as an HTML image that contains its data."""
    data = base64.b64encode(_png(fig)).decode()
    width = round(fig.get_figwidth() * SHOWN_DPI)
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" style="width:{width}px;max-width:100%">'


def _png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=2 * SHOWN_DPI, facecolor="white")  # sharp on dense screens
    return buffer.getvalue()


# ---- accuracies -------------------------------------------------------------------------------------------------


def accuracy_by_method(results: pd.DataFrame, *, by: str = "setup") -> Figure:
    """Mean test accuracy of each method, one panel for each value of column `by`; a line for the untrained backbone."""
    trained, untrained = test_scores(results)
    panels, styles = list(dict.fromkeys(trained[by])), looks(trained["label"])
    fig, axes = panel_row(len(panels), width=4.3, height=0.6 + 0.4 * len(styles), sharey=True)
    best = {}
    for ax, panel in zip(axes, panels, strict=True):
        before = untrained[untrained[by] == panel].groupby("seed")["value"].mean().mean()
        ax.axvline(before, color=GREY, linestyle="--", linewidth=1.2, label="untrained backbone")
        means = {}
        for place, (method, style) in enumerate(styles.items()):
            chosen = trained[(trained[by] == panel) & (trained["label"] == method)]
            if chosen.empty:
                continue
            bar(ax, place, sampling.spread(chosen), dotted=sampling.by_chance(chosen), markersize=8, **style)
            seeds = chosen.groupby("seed")["value"].mean()
            if len(seeds) > 1:
                ax.plot(seeds, [place] * len(seeds), "|", color=style["color"], markersize=7)
            means[method] = seeds.mean()
            ax.annotate(f"{means[method]:.1f}", (means[method], place), (0, 7), textcoords="offset points", ha="center",
                        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0})  # fmt: skip
        best[panel] = highest(pd.Series(means))
        ax.set(title=f"{by}: {panel}", xlabel=score_unit(results), ylim=(len(styles) - 0.5, -0.8))
        ax.margins(x=0.12)
    axes[0].set_yticks(range(len(styles)), list(styles))
    key(axes)
    return titled(fig, f"Highest mean: {by_panel(best)}", sampling.note(trained, "bars"))


def accuracy_by_client(results: pd.DataFrame, *, by: str = "setup") -> Figure:
    """Each client's test accuracy, untrained (hollow) and after training with each method (filled)."""
    trained, untrained = test_scores(results)
    panels, styles = list(dict.fromkeys(trained[by])), looks(trained["label"])
    per_panel = [list(dict.fromkeys(trained.loc[trained[by] == panel, "client"])) for panel in panels]
    tall = 0.9 + max(map(len, per_panel)) * (0.25 + 0.16 * len(styles))
    fig, axes = panel_row(len(panels), width=4.3, height=tall)
    gained = dict.fromkeys(styles, 0)
    for ax, panel, clients in zip(axes, panels, per_panel, strict=True):
        before = untrained[untrained[by] == panel].groupby("client")["value"].mean().reindex(clients)
        for j, (method, style) in enumerate(styles.items()):
            chosen = trained[(trained[by] == panel) & (trained["label"] == method)]
            if chosen.empty:
                continue
            after = chosen.groupby("client")["value"].mean().reindex(clients)
            gained[method] += int((after > before).sum())
            places = [k + 0.7 * ((j + 0.5) / len(styles) - 0.5) for k in range(len(clients))]
            if sampling.by_chance(chosen):
                spreads = [sampling.spread(chosen[chosen["client"] == client])[1:] for client in clients]
                ax.hlines(places, *zip(*spreads, strict=True), color=style["color"], linewidth=1, linestyle=":")
            ax.hlines(places, before, after, color=style["color"], linewidth=1.6)
            ax.plot(before, places, "o", color=GREY, markerfacecolor="white", markersize=4)
            ax.plot(after, places, linestyle="none", markersize=6, label=method, **style)
        ax.set_yticks(range(len(clients)), clients)
        ax.set(title=f"{by}: {panel}", xlabel=score_unit(results), ylim=(len(clients) - 0.5, -0.5))
    key(axes)
    total, seeds = sum(map(len, per_panel)), trained["seed"].nunique()
    counts = listed(f"{n} with {method}" for method, n in gained.items())
    drawn = f"; dotted: {sampling.NOTE}" if sampling.by_chance(trained) else ""
    subtitle = f"hollow: untrained; filled: trained, {f'mean over {seeds} seeds' if seeds > 1 else '1 seed'}{drawn}"
    return titled(fig, f"Clients that score higher after training, of {total}: {counts}", subtitle)


def learning_curves(results: pd.DataFrame, metric: str = "loss", split: str = "train", *, by: str = "setup") -> Figure:
    """A metric over the rounds, one line for each method."""
    rows = _rows(results, metric, split)
    panels, styles = list(dict.fromkeys(rows[by])), looks(rows["label"])
    fig, axes = panel_row(len(panels), width=4.2, height=3.0, sharey=True)
    best = {}
    for ax, panel in zip(axes, panels, strict=True):
        own = rows[rows[by] == panel]
        for aside, (label, chosen) in zip(side_by_side(len(styles)), own.groupby("label", sort=False), strict=False):
            mean_line(ax, chosen, "round", aside=aside, label=label, markersize=5, **styles[label])
        last = own[own["round"] == own["round"].max()].groupby("label", sort=False)["value"].mean()
        best[panel] = highest(-last if metric == "loss" else last, digits=2 if metric == "loss" else 1)
        ax.set(title=f"{by}: {panel}", xlabel="round")
        ax.xaxis.get_major_locator().set_params(integer=True)
    unit = {"loss": "loss (nats a token)", "accuracy": "accuracy (%)", "score": "score (%)"}.get(metric, metric)
    which = {"train": "training", "held_out": "held-out"}.get(split, split)
    label_rows(axes, f"{which} {unit}")
    key(axes)
    title = f"{'Lowest' if metric == 'loss' else 'Highest'} {which} {metric} after the last round: {by_panel(best)}"
    return titled(fig, title, sampling.note(rows, "bands"))


# ---- mixing -----------------------------------------------------------------------------------------------------


def lam_sweep(results: pd.DataFrame) -> Figure:
    """Test accuracy against a fixed λ: a line for each client, a thick one for the mean, and adaptive λ's mean.

    Raises DataError where no run has fixed mixing.
    """
    trained, _ = test_scores(results)
    fixed = trained[trained["mixing"].str.startswith("fixed ")]
    if fixed.empty:
        raise DataError("these results have no run with a fixed λ: run method fedreft with mixing=0.0, 0.5, 1.0, say")
    fixed = fixed.assign(lam=fixed["mixing"].str.removeprefix("fixed ").astype(float))
    fig, (ax,) = panel_row(1, width=5.6, height=3.6)
    for client, look, chosen in _clients(fixed):
        mean_line(ax, chosen, "lam", band=False, label=client, markersize=5, linewidth=1, **look)
    mean_line(ax, fixed, "lam", color=BLACK, label="mean over clients", marker="o", linewidth=2.8)
    adaptive = trained[trained["mixing"] == "adaptive"]
    if not adaptive.empty:
        level = adaptive.groupby("seed")["value"].mean().mean()
        ax.axhline(level, color=BLACK, linestyle="--", linewidth=1.5, label=f"adaptive λ, mean ({level:.1f} %)")
    ax.set(xlabel="λ: the share of the others' aggregate that a client takes in", ylabel=score_unit(results))
    key([ax])
    means = fixed.groupby(["lam", "seed"])["value"].mean().groupby("lam").mean()
    title = f"Highest mean of the fixed shares: λ = {highest(means)} ({means.max():.1f} %)"
    return titled(fig, title, sampling.note(fixed, "band"))


def lam_by_round(results: pd.DataFrame) -> Figure:
    """The λ that each client chose with adaptive mixing, over the rounds; thin lines are single seeds."""
    rows = _rows(results[results["mixing"] == "adaptive"], "lam", "held_out")
    fig, (ax,) = panel_row(1, width=5.6, height=3.2)
    clients = list(dict.fromkeys(rows["client"]))
    for client, look, chosen in _clients(rows):
        aside = 0.05 * (clients.index(client) - (len(clients) - 1) / 2)  # equal choices would hide each other
        chosen = chosen.assign(round=chosen["round"] + aside)
        mean_line(ax, chosen, "round", band=False, label=client, linewidth=2, **look)
        for _, one in chosen.groupby("seed"):
            ax.plot(one["round"], one["value"], color=look["color"], linewidth=0.6)
    ax.set(xlabel="round", ylabel="λ chosen", ylim=(-0.05, 1.05))
    ax.xaxis.get_major_locator().set_params(integer=True)
    key([ax])
    seeds, last = rows["seed"].nunique(), rows["round"].max()
    ends = rows[rows["round"] == last].groupby("client")["value"].mean()
    subtitle = f"thick: mean of {seeds} seeds, thin: each seed" if seeds > 1 else "1 seed"
    return titled(fig, f"In round {last} clients chose λ from {ends.min():.2f} to {ends.max():.2f}", subtitle)


def mixing_heatmap(M: Tensor | Sequence[tuple[str, Tensor]], names: Sequence[str], title: str) -> Figure:
    """The mixing matrix M (N, N), row k the weights of client k's new state; or several as (heading, M)."""
    several = [("", M)] if isinstance(M, Tensor) else list(M)
    n = len(names)
    longest = max(map(len, names))
    fig, axes = panel_row(len(several), width=0.9 + 0.5 * n, height=1.0 + 0.05 * longest + 0.45 * n, sharey=True)
    for ax, (heading, matrix) in zip(axes, several, strict=True):
        image = ax.imshow(matrix.numpy(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for i in range(n):
            for j in range(n):
                value = float(matrix[i, j])
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.45 else BLACK)
        ax.set_xticks(range(n), names, rotation=35 if longest > 2 else 0, ha="right" if longest > 2 else "center")
        ax.set_yticks(range(n), names)
        ax.set(title=heading, xlabel="whose state")
        ax.grid(False)
    label_rows(axes, "client that receives")
    fig.colorbar(image, ax=list(axes), label="weight", shrink=0.8)
    return titled(fig, title, "each row sums to 1; the diagonal is what a client keeps of its own")


# ---- data and toy -----------------------------------------------------------------------------------------------


def partition_table(tables: pd.DataFrame | Mapping[str, pd.DataFrame], split: str = "train") -> Figure:
    """Stacked bars of tasks for each client. tables: from `partition.label_table`, one, or several by heading."""
    several = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    counts = {heading: table.loc[split] for heading, table in several.items()}
    tasks = list(dict.fromkeys(task for table in counts.values() for task in table.columns))
    most = max(map(len, counts.values()))
    fig, axes = panel_row(len(counts), width=2.9, height=1.1 + 0.32 * most)
    for ax, (heading, table) in zip(axes, counts.items(), strict=True):
        left = pd.Series(0, index=table.index)
        for colour, task in zip(_cycle(), tasks, strict=False):
            width = table[task] if task in table else 0 * left
            ax.barh(range(len(table)), width, left=left, color=colour, label=task, edgecolor="white", linewidth=0.8)
            left = left + width
        ax.set_yticks(range(len(table)), [name.split("-")[0] for name in table.index])
        ax.set(title=heading, xlabel=f"{split} questions", ylim=(len(table) - 0.5, -0.5))
    key(axes, "task")
    return titled(
        fig, "The more two rows differ in colour, the more two clients differ",
        "a row of one colour: a client with one task",
    )  # fmt: skip


def toy_plane(X: Tensor, client: int = 0, lam: float = 0.5) -> Figure:
    """A federation with P = 2: the clients X (N, 2), and where one of them moves by mean and by geometric median."""
    fig, (ax,) = panel_row(1, width=5.4, height=3.8)
    points = X.tolist()
    ax.plot(*zip(*points, strict=True), "o", color=GREY, markersize=9, label="clients")
    for k, point in enumerate(points):
        ax.annotate(f"{k + 1}", point, (-14, -6), textcoords="offset points")
    mean = X.mean(0)
    ax.plot(*mean.tolist(), "X", color=colour_of("FedAvg"), markersize=10, label="FedAvg: mean of all")
    for kind in ("mean", "geometric_median"):
        received = all_but_me(X, kind).aggregate[client]
        goal = (1 - lam) * X[client] + lam * received
        (style,) = looks([f"FedReFT {AGGREGATES[kind]}"]).values()
        label = f"{kind.replace('_', ' ')} of the others"
        ax.plot(*received.tolist(), markersize=9, linestyle="none", label=label, **style)
        ax.annotate(
            "", goal.tolist(), points[client], arrowprops={"arrowstyle": "->", "color": style["color"], "lw": 2}
        )
    ax.set(xlabel="first parameter", ylabel="second parameter")
    ax.margins(0.1)
    ax.set_aspect("equal", adjustable="datalim")
    key([ax])
    return titled(fig, "A far-off client pulls the mean, not the median", f"arrows: client {client + 1}, λ = {lam:g}")


def change_by_token(change: Tensor, tokens: Sequence[str], title: str) -> Figure:
    """How much an edit changes each hidden state: `change` (layers, tokens); 0 is white; the lowest layer is below."""
    layers = len(change)
    fig, (ax,) = panel_row(1, width=1.2 + 0.3 * len(tokens), height=1.6 + 0.08 * layers)
    drawn = ax.imshow(change.numpy(), cmap="Blues", vmin=0, origin="lower", aspect="auto")
    ax.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right")
    ax.set(xlabel="token", ylabel="after block")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.grid(False)
    fig.colorbar(drawn, ax=ax, label="size of the change over\nsize of the hidden state")
    return titled(fig, title, "white: unchanged")


# ---- shared -----------------------------------------------------------------------------------------------------


def _rows(results: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """The rows of one metric, with each method's label. Raises DataError where there are none."""
    rows = results[(results["metric"] == metric) & (results["split"] == split)]
    if rows.empty:
        raise DataError(f"these results have no rows with metric {metric!r} and split {split!r}: nothing to draw")
    return sampling.of_one_seed(rows.assign(label=method_labels(rows)))


def test_scores(results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test scores of the tasks' primary metrics: (after each run's last round, before its first)."""
    scores = results[results["metric"].isin(PRIMARY)].assign(metric="score")
    rows = _rows(scores, "score", "test")
    return rows[rows["round"] == rows["rounds"]], rows[rows["round"] == 0]


def score_unit(results: pd.DataFrame) -> str:
    """The name and unit of these results' scores."""
    found = set(results["metric"]) & set(PRIMARY)
    names = {"rouge_l": "ROUGE-L"}
    if found == {"accuracy"}:
        return "test accuracy (%)"
    return "test score (%): " + ", ".join(names.get(each, each) for each in sorted(found))


def _clients(rows: pd.DataFrame) -> Iterator[tuple[str, dict[str, str], pd.DataFrame]]:
    """(client, how it is drawn, its rows) for each client."""
    for i, (client, own) in enumerate(rows.groupby("client", sort=False)):
        yield client, {"color": CYCLE[i % len(CYCLE)], "marker": MARKERS[i % len(MARKERS)]}, own


def _cycle():
    return iter(CYCLE * 100)
