"""The workbook's figures: each function takes plain tables or tensors and returns a matplotlib Figure.

`results` is a table with the columns of results.csv (`runs.results.RESULTS`), of one or more runs. Round 0 is the
untrained backbone, and a run's last round has its trained states. A figure's second line says what it averages: first
over the clients of a run, then over seeds. Bars and bands are one standard deviation over seeds. The colours are Okabe
and Ito's, which colour-blind readers can distinguish; a method has the same colour in every figure.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ..core.aggregation import all_but_me
from ..data.grading.metrics import PRIMARY
from ..errors import DataError

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#777777",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK)
SHOWN_DPI = 88  # screen pixels per inch
NAMES = {
    "local": "local only", "fedavg": "FedAvg", "centralised": "centralised (data pooled)", "fedit": "FedIT",
    "fedprox": "FedProx", "fedadam": "FedAdam", "ffa": "FFA", "fedsa": "FedSA", "fedalt": "FedALT", "feddpa": "FedDPA",
    "flora": "FLoRA", "fedsb": "Fed-SB", "lorar": "Lorar", "lorafair": "LoRA-FAIR", "tuned": "FedAvg, tuned",
    "flood": "FLood", "fedvra": "FedVRA", "fedhl": "FedHL", "fedins": "FedIns", "fedgmm": "FedGMM", "alore": "ALoRE",
    "fedglomo": "FedGLOMO", "flame": "FLAME", "fedppa": "FedPPA",
}  # fmt: skip
AGGREGATES = {
    "geometric_median": "median", "mean": "mean", "trimmed_mean": "trimmed mean",
    "coordinate_median": "coordinate median", "krum": "Krum", "multi_krum": "multi-Krum",
}  # fmt: skip


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
    panels = list(dict.fromkeys(trained[by]))
    methods = list(dict.fromkeys(trained["label"]))
    fig, axes = panel_row(len(panels), width=4.6, height=0.6 + 0.38 * len(methods), sharey=True)
    for ax, panel in zip(axes, panels, strict=True):
        before = untrained[untrained[by] == panel].groupby("seed")["value"].mean().mean()
        ax.axvline(before, color=GREY, linestyle="--", linewidth=1.2, label="untrained backbone")
        for place, method in enumerate(methods):
            chosen = trained[(trained[by] == panel) & (trained["label"] == method)]
            if chosen.empty:
                continue
            seeds = chosen.groupby("seed")["value"].mean()
            colour = chosen["colour"].iloc[0]
            spread = seeds.std() if len(seeds) > 1 else None
            ax.errorbar(seeds.mean(), place, xerr=spread, fmt="o", color=colour, markersize=8, capsize=4, linewidth=1.8)
            ax.plot(seeds, [place] * len(seeds), "|", color=colour, alpha=0.6, markersize=7)
            ax.annotate(f"{seeds.mean():.1f}", (seeds.mean(), place), (0, 7), textcoords="offset points", ha="center")
        ax.set(title=f"{by}: {panel}", xlabel=score_unit(results), ylim=(len(methods) - 0.5, -0.7))
        ax.margins(x=0.12)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return titled(fig, "How well the clients answer after training, by method", spread_note(trained, "bars"))


def accuracy_by_client(results: pd.DataFrame, *, by: str = "setup") -> Figure:
    """Each client's test accuracy, untrained (hollow) and after training with each method (filled)."""
    trained, untrained = test_scores(results)
    panels = list(dict.fromkeys(trained[by]))
    methods = list(dict.fromkeys(trained["label"]))
    per_panel = [list(dict.fromkeys(trained.loc[trained[by] == panel, "client"])) for panel in panels]
    tall = 0.9 + max(map(len, per_panel)) * (0.25 + 0.14 * len(methods))
    fig, axes = panel_row(len(panels), width=4.4, height=tall)
    for ax, panel, clients in zip(axes, panels, per_panel, strict=True):
        for j, method in enumerate(methods):
            chosen = trained[(trained[by] == panel) & (trained["label"] == method)]
            if chosen.empty:
                continue
            after = chosen.groupby("client")["value"].mean().reindex(clients)
            before = untrained[untrained[by] == panel].groupby("client")["value"].mean().reindex(clients)
            places = [k + 0.7 * ((j + 0.5) / len(methods) - 0.5) for k in range(len(clients))]
            colour = chosen["colour"].iloc[0]
            ax.hlines(places, before, after, color=colour, linewidth=1.2, alpha=0.7)
            ax.plot(before, places, "o", color=GREY, markerfacecolor="white", markersize=4)
            ax.plot(after, places, "o", color=colour, markersize=6, label=method)
        ax.set_yticks(range(len(clients)), clients)
        ax.set(title=f"{by}: {panel}", xlabel=score_unit(results), ylim=(len(clients) - 0.5, -0.5))
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), title="hollow: untrained")
    seeds = trained["seed"].nunique()
    return titled(fig, "What each client gains", f"mean over {seeds} seeds" if seeds > 1 else "1 seed")


def learning_curves(results: pd.DataFrame, metric: str = "loss", split: str = "train", *, by: str = "setup") -> Figure:
    """A metric over the rounds, one line for each method."""
    rows = _rows(results, metric, split)
    panels = list(dict.fromkeys(rows[by]))
    fig, axes = panel_row(len(panels), width=4.2, height=3.0, sharey=True)
    for ax, panel in zip(axes, panels, strict=True):
        for label, chosen in rows[rows[by] == panel].groupby("label", sort=False):
            mean_line(ax, chosen, "round", color=chosen["colour"].iloc[0], label=label, marker="o", markersize=4)
        ax.set(title=f"{by}: {panel}", xlabel="round")
        ax.xaxis.get_major_locator().set_params(integer=True)
    unit = {"loss": "loss (nats a token)", "accuracy": "accuracy (%)"}.get(metric, metric)
    axes[0].set_ylabel(f"{split} {unit}")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return titled(fig, f"{split} {metric}, round by round", spread_note(rows, "bands"))


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
    for colour, (client, chosen) in zip(_cycle(), fixed.groupby("client", sort=False), strict=False):
        mean_line(ax, chosen, "lam", band=False, color=colour, label=client, marker=".", linewidth=1)
    mean_line(ax, fixed, "lam", color=BLACK, label="mean over clients", marker="o", linewidth=2.8)
    adaptive = trained[trained["mixing"] == "adaptive"]
    if not adaptive.empty:
        level = adaptive.groupby("seed")["value"].mean().mean()
        ax.axhline(level, color=BLACK, linestyle="--", linewidth=1.5, label=f"adaptive λ, mean ({level:.1f} %)")
    ax.set(xlabel="λ: the share of the others' aggregate that a client takes in", ylabel=score_unit(results))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return titled(fig, "How much to listen: accuracy against λ", spread_note(fixed, "band"))


def lam_by_round(results: pd.DataFrame) -> Figure:
    """The lam that each client chose with adaptive mixing, over the rounds; thin lines are single seeds."""
    rows = _rows(results[results["mixing"] == "adaptive"], "lam", "held_out")
    fig, (ax,) = panel_row(1, width=5.6, height=3.2)
    clients = list(dict.fromkeys(rows["client"]))
    for colour, client in zip(_cycle(), clients, strict=False):
        chosen = rows[rows["client"] == client]
        aside = 0.05 * (clients.index(client) - (len(clients) - 1) / 2)  # equal choices would hide each other
        chosen = chosen.assign(round=chosen["round"] + aside)
        mean_line(ax, chosen, "round", band=False, color=colour, label=client, marker="o", linewidth=2)
        for _, one in chosen.groupby("seed"):
            ax.plot(one["round"], one["value"], color=colour, alpha=0.35, linewidth=0.8)
    ax.set(xlabel="round", ylabel="λ chosen", ylim=(-0.05, 1.05))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    seeds = rows["seed"].nunique()
    subtitle = f"thick: mean of {seeds} seeds, thin: each seed" if seeds > 1 else "1 seed"
    return titled(fig, "How much each client chose to listen", subtitle)


def mixing_heatmap(M: Tensor | Sequence[tuple[str, Tensor]], names: Sequence[str], title: str) -> Figure:
    """The mixing matrix M (N, N), row k the weights of client k's new state; or several as (heading, M)."""
    several = [("", M)] if isinstance(M, Tensor) else list(M)
    n = len(names)
    fig, axes = panel_row(len(several), width=0.9 + 0.55 * n, height=1.0 + 0.5 * n, sharey=True)
    for ax, (heading, matrix) in zip(axes, several, strict=True):
        image = ax.imshow(matrix.numpy(), cmap="cividis", vmin=0, vmax=1)
        for i in range(n):
            for j in range(n):
                value = float(matrix[i, j])
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.55 else BLACK)
        ax.set_xticks(range(n), names, rotation=35, ha="right")
        ax.set_yticks(range(n), names)
        ax.set(title=heading, xlabel="whose state")
        ax.grid(False)
    axes[0].set_ylabel("client that receives")
    fig.colorbar(image, ax=list(axes), label="weight", shrink=0.8)
    return titled(fig, title, "each row sums to 1")


# ---- data and toy -----------------------------------------------------------------------------------------------


def partition_table(tables: pd.DataFrame | Mapping[str, pd.DataFrame], split: str = "train") -> Figure:
    """Stacked bars of tasks for each client. tables: from `partition.label_table`, one, or several by heading."""
    several = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    counts = {heading: table.loc[split] for heading, table in several.items()}
    tasks = list(dict.fromkeys(task for table in counts.values() for task in table.columns))
    most = max(map(len, counts.values()))
    fig, axes = panel_row(len(counts), width=3.3, height=1.1 + 0.32 * most)
    for ax, (heading, table) in zip(axes, counts.items(), strict=True):
        left = pd.Series(0, index=table.index)
        for colour, task in zip(_cycle(), tasks, strict=False):
            width = table[task] if task in table else 0 * left
            ax.barh(range(len(table)), width, left=left, color=colour, label=task, edgecolor="white", linewidth=0.8)
            left = left + width
        ax.set_yticks(range(len(table)), [name.split("-")[0] for name in table.index])
        ax.set(title=heading, xlabel=f"{split} questions", ylim=(len(table) - 0.5, -0.5))
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), title="task")
    return titled(fig, "Who has which questions", "colours that differ between rows: clients that differ")


def toy_plane(X: Tensor, client: int = 0, lam: float = 0.5) -> Figure:
    """A federation with P = 2: the clients X (N, 2), and where one of them moves by mean and by geometric median."""
    fig, (ax,) = panel_row(1, width=5.4, height=3.8)
    points = X.tolist()
    ax.plot(*zip(*points, strict=True), "o", color=GREY, markersize=9, label="clients")
    for k, point in enumerate(points):
        ax.annotate(f"{k + 1}", point, (-14, -6), textcoords="offset points")
    mean = X.mean(0)
    ax.plot(*mean.tolist(), "X", color=ORANGE, markersize=10, label="FedAvg: mean of all")
    for kind, colour, marker in (("mean", SKY, "s"), ("geometric_median", BLUE, "D")):
        received = all_but_me(X, kind).aggregate[client]
        goal = (1 - lam) * X[client] + lam * received
        ax.plot(*received.tolist(), marker, color=colour, markersize=9, linestyle="none",
                label=f"{kind.replace('_', ' ')} of the others")  # fmt: skip
        ax.annotate("", goal.tolist(), points[client], arrowprops={"arrowstyle": "->", "color": colour, "lw": 2})
    ax.set(xlabel="first parameter", ylabel="second parameter")
    ax.margins(0.1)
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return titled(fig, "A far-off client pulls the mean, not the median", f"arrows: client {client + 1}, λ {lam:g}")


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


def method_labels(results: pd.DataFrame) -> pd.Series:
    """A readable name of each row's method: "FedAvg", "FedReFT median, λ 0.3", "FFA (lora)"; LoReFT is not named."""

    def label(row) -> str:
        kind = "" if row.intervention == "loreft" or row.method == "fedit" else f" ({row.intervention})"
        if row.method in NAMES:
            return NAMES[row.method] + kind
        mixing = row.mixing.replace("fixed ", "λ ") if row.mixing.startswith("fixed ") else f"{row.mixing} λ"
        name = "placebo" if row.method == "placebo" else f"FedReFT {AGGREGATES[row.aggregation]}"
        return f"{name}, {mixing}{kind}"

    kinds = results[["method", "aggregation", "mixing", "intervention"]]
    names = {tuple(row): label(row) for row in kinds.drop_duplicates().itertuples(index=False)}
    return pd.Series([names[tuple(row)] for row in kinds.itertuples(index=False)], index=results.index, dtype=object)


def method_colour(method: str, aggregation: str, mixing: str) -> str:
    """The colour of a method in every figure."""
    if method == "fedreft":
        adaptive = {"geometric_median": GREEN, "mean": RED, "trimmed_mean": BLUE, "krum": SKY}
        fixed = {"geometric_median": BLUE, "mean": SKY, "trimmed_mean": GREEN, "krum": RED}
        rest = {"coordinate_median": PURPLE, "multi_krum": YELLOW}
        return ((adaptive if mixing == "adaptive" else fixed) | rest)[aggregation]
    others = {
        "local": BLACK, "fedavg": ORANGE, "fedit": ORANGE, "fedprox": ORANGE, "fedadam": ORANGE, "centralised": PURPLE,
        "ffa": YELLOW, "fedsa": YELLOW, "fedsb": YELLOW, "fedalt": RED, "feddpa": RED, "flora": PURPLE, "placebo": GREY,
        "lorar": ORANGE, "lorafair": YELLOW, "tuned": GREEN, "flood": RED, "fedvra": ORANGE, "fedhl": PURPLE,
        "fedins": BLUE, "fedgmm": RED, "alore": SKY, "fedglomo": BLUE, "flame": RED, "fedppa": SKY,
    }  # fmt: skip
    return others[method]


def _rows(results: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """The rows of one metric, with each method's label and colour. Raises DataError where there are none."""
    rows = results[(results["metric"] == metric) & (results["split"] == split)]
    if rows.empty:
        raise DataError(f"these results have no rows with metric {metric!r} and split {split!r}: nothing to draw")
    kinds = zip(rows["method"], rows["aggregation"], rows["mixing"], strict=True)
    return rows.assign(label=method_labels(rows), colour=[method_colour(*kind) for kind in kinds])


def test_scores(results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test scores of the tasks' primary metrics: (after each run's last round, before its first)."""
    scores = results[results["metric"].isin(PRIMARY)].assign(metric="score")
    rows = _rows(scores, "score", "test")
    return rows[rows["round"] == rows["rounds"]], rows[rows["round"] == 0]


def score_unit(results: pd.DataFrame) -> str:
    """The name and unit of these results' scores."""
    found = set(results["metric"]) & set(PRIMARY)
    return "test accuracy (%)" if found == {"accuracy"} else "test score (%): " + ", ".join(sorted(found))


def mean_line(ax: Axes, rows: pd.DataFrame, x: str, *, band: bool = True, **style) -> None:
    """The mean over clients and then seeds of `value` against column x; a band where there are several seeds."""
    per_seed = rows.groupby(["seed", x])["value"].mean().unstack("seed")  # x by seed
    mean = per_seed.mean(axis=1)
    ax.plot(mean.index, mean, **style)
    if band and per_seed.shape[1] > 1:
        spread = per_seed.std(axis=1)
        ax.fill_between(mean.index, mean - spread, mean + spread, color=(*to_rgb(style["color"]), 0.18), linewidth=0)


def spread_note(rows: pd.DataFrame, drawn: str) -> str:
    seeds = rows["seed"].nunique()
    if seeds == 1:
        return f"mean over clients; 1 seed, so no {drawn}"
    return f"mean over clients and {seeds} seeds; {drawn}: standard deviation over seeds"


def _cycle():
    return iter(CYCLE * 100)


def panel_row(n: int, *, width: float, height: float, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """n panels in a row, each of the given size in inches. A plain Figure, not pyplot's, needs no closing."""
    fig = Figure(figsize=(n * width + 2.2, height + 0.8), layout="constrained")
    axes = fig.subplots(1, n, squeeze=False, sharey=sharey)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return fig, axes


def titled(fig: Figure, title: str, subtitle: str) -> Figure:
    fig.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=12, fontweight="bold", linespacing=1.6)
    fig.text(0.01, 1 - 0.36 / fig.get_figheight(), subtitle, ha="left", va="top", fontsize=9, color="#444444")
    return fig
