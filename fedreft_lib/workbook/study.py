"""When does listening to the others help? Notebook 06's map: gains by agreement and data, on a task with known optimum.

A map is a set of runs that differ in agreement a, training size n, method and seed. `scores` is its table: agreement,
n, clients, hostile, seed, method, client, value (test accuracy in percent), questions (that each client was asked).
Training alone and FedAvg are the two ends of one curve of lam: Mean-ABM with lam = 0 and lam = (K - 1) / K.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..config import RunConfig
from ..runs.results import Run
from . import sampling, statistics
from .canvas import by_panel, highest, key, label_rows, mean_line, move, panel_row, side_by_side, titled
from .looks import GREY, colour_of, looks, method_labels

LOCAL, FEDAVG, BEST = "local only", "FedAvg", "best λ (of other seeds)"
CELL = ["agreement", "n"]


def cells(
    base: RunConfig,
    agreements: Iterable[float],
    sizes: Iterable[int],
    methods: Sequence[Mapping[str, Any]],
    seeds: Iterable[int],
) -> list[RunConfig]:
    """The configs of a map, in the order in which runs share most: all methods of one seed and cell together."""
    return [
        base.but(agreement=a, train_size=n, seed=seed, **method)
        for a, n, seed in product(agreements, sizes, seeds)
        for method in methods
    ]


def scores(runs: Sequence[Run]) -> pd.DataFrame:
    """The table of the module's docstring. Hostile clients are left out: nobody asks how well they do."""
    tables = []
    for run in runs:
        c, after = run.config, run.accuracy()
        label = method_labels(run.results.head(1)).iloc[0]
        honest = after.iloc[: c.clients - c.hostile]
        tables.append(pd.DataFrame({
            "agreement": c.agreement, "n": c.train_size, "clients": c.clients, "hostile": c.hostile, "seed": c.seed,
            "method": label, "lam": end_of_curve(c), "client": honest.index, "value": honest.to_numpy(),
            "questions": sampling.asked(c),
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def keep(table: pd.DataFrame, file: Path) -> None:
    """Write the mean over clients for each seed, from which all comparisons can be computed again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    keys = [name for name in table.columns if name not in ("client", "value", "questions")]
    table.groupby(keys, sort=False, dropna=False)["value"].mean().round(4).reset_index().to_csv(file, index=False)


def end_of_curve(config: RunConfig) -> float:
    """Where a run lies on the curve of Mean-ABM's lam; NaN for what is not on it."""
    if config.method in ("local", "fedavg"):
        return 0.0 if config.method == "local" else (config.clients - 1) / config.clients
    of_mean = config.method == "fedreft" and config.aggregation == "mean" and isinstance(config.mixing, float)
    return config.mixing if of_mean else np.nan


def with_best(table: pd.DataFrame) -> pd.DataFrame:
    """`scores` with one more method: in each cell and seed, Mean-ABM's lam that is best on the other seeds.

    The ends of the curve are no candidates. A share that was chosen on the seed that it is tested on would look better
    than it is.
    """
    inner = table[(table["lam"] > 0) & (table["method"] != FEDAVG)]
    found = []
    for _, cell in inner.groupby(CELL, sort=False):
        means = cell.groupby(["seed", "lam"])["value"].mean().unstack("lam")  # seeds x lam
        if len(means) < 2:
            continue
        for seed in means.index:
            best = means.drop(seed).mean().idxmax()
            found.append(cell[(cell["seed"] == seed) & (cell["lam"] == best)].assign(method=BEST, lam=np.nan))
    return pd.concat([table, *found], ignore_index=True)


def chosen_lams(runs: Sequence[Run]) -> pd.DataFrame:
    """What adaptive mixing chose: the mean lam over clients and seeds, in both halves of the rounds, by its loss."""
    tables = []
    for run in runs:
        c, lams = run.config, run.history[run.history["metric"] == "lam"]
        if c.mixing == "adaptive" and c.method == "fedreft":
            half = np.where(lams["round"] > c.rounds / 2, "second half", "first half")
            cell = {"by": c.adaptive_by, "n": c.train_size, "agreement": c.agreement}
            tables.append(pd.DataFrame({**cell, "half": half, "lam": lams["value"]}))
    if not tables:
        return pd.DataFrame(columns=["first half", "second half"])
    return pd.concat(tables).pivot_table(index=["by", "n", "agreement"], columns="half", values="lam")


def contrasts(table: pd.DataFrame) -> pd.DataFrame:
    """`statistics.family` of the map: in each cell every method against both ends of the curve, as one family.

    Of the curve's inner points only the best one (`with_best`) is in it, and FedAvg against training alone only once.
    """
    cell = table["agreement"].map("a = {:g}".format) + table["n"].map(", n = {}".format)
    rows = table.assign(cell=cell)
    rows = rows[rows["lam"].isna() | rows["method"].isin([LOCAL, FEDAVG])].drop(columns="lam")
    over_local = statistics.differences(rows, LOCAL, "cell")
    over_fedavg = statistics.differences(rows[rows["method"] != LOCAL], FEDAVG, "cell")
    return statistics.family(pd.concat([over_local, over_fedavg]))


def gain_map(table: pd.DataFrame, found: pd.DataFrame, method: str) -> Figure:
    """A method's gain over both ends by agreement, one panel for each n. Filled markers: certain after Holm."""
    sizes = sorted(table["n"].unique())
    fig, axes = panel_row(len(sizes), width=_width(sizes), height=3.2, sharey=True)
    for ax, n in zip(axes, sizes, strict=True):
        ax.axhline(0, color=GREY, linewidth=1)
        agreements = sorted(table.loc[table["n"] == n, "agreement"].unique())
        for end, shift, marker in ((LOCAL, -0.004, "o"), (FEDAVG, 0.004, "s")):
            colour = colour_of(end)
            rows = found.reindex([(f"a = {a:g}, n = {n}", end, method) for a in agreements])
            x = np.array(agreements) + shift
            ax.plot(x, rows["difference"], color=colour, linewidth=1.2)
            ax.vlines(x, rows["low"], rows["high"], color=colour, linewidth=1.6)
            certain = rows["verdict"].isin(["above", "below"]).to_numpy()
            dots = {"marker": marker, "linestyle": "none", "color": colour, "markersize": 7}
            ax.plot(x[~certain], rows["difference"][~certain], markerfacecolor="white", **dots)
            ax.plot(x[certain], rows["difference"][certain], label=f"over {end}", **dots)
        ax.set(title=f"{n} training texts a client", xlabel="share of labels\non which clients agree")
    label_rows(axes, "gain in accuracy (points)")
    key(axes)
    ends = [found[found.index.get_level_values("against") == end] for end in (LOCAL, FEDAVG)]
    both = statistics.above_both(*ends)["above both ends"]
    both = both[both.index.get_level_values("method") == method]
    title = f"Certainly above both ends in {both.sum() or 'none'} of {len(both)} cells: {method}"
    bars = "bars: 95 % interval over seeds" if found["seeds"].max() > 1 else "one seed, so no interval"
    return titled(fig, title, f"{bars}; filled: certain after Holm")


def lam_curves(table: pd.DataFrame, clients: int) -> dict[str, Figure]:
    """For each agreement a figure: accuracy minus training alone against lam, a panel for each n, the ends marked."""
    on_curve = table[table["lam"].notna() & (table["clients"] == clients)]
    sizes, found = sorted(on_curve["n"].unique()), {}
    gain = on_curve.groupby([*CELL, "lam", "seed"])["value"].mean()
    gain = gain - gain.xs(0.0, level="lam").reindex(gain.index.droplevel("lam")).to_numpy()
    low, high = gain.min() - 1, gain.max() + 1
    colour = colour_of("FedReFT mean")
    for a in sorted(on_curve["agreement"].unique(), reverse=True):
        fig, axes = panel_row(len(sizes), width=_width(sizes), height=3.0, sharey=True)
        best = {}
        for ax, n in zip(axes, sizes, strict=True):
            by_seed = gain.xs((a, n), level=CELL).unstack("seed")  # lam x seeds
            ax.axhline(0, color=GREY, linewidth=1)
            if by_seed.shape[1] > 1:
                ax.plot(by_seed.index, by_seed, color=colour, linewidth=0.5)
            ax.plot(by_seed.index, by_seed.mean(axis=1), "s-", color=colour, linewidth=2.4)
            best[f"n = {n}"] = f"λ = {highest(by_seed.mean(axis=1).rename('{:.2g}'.format))}"
            ax.set(title=f"{n} training texts a client", xlabel="λ", ylim=(low, high))
            ax.set_xticks([0, (clients - 1) / clients], ["0\nlocal", f"{(clients - 1) / clients:.2f}\nFedAvg"])
            ax.margins(x=0.08)
        label_rows(axes, "points over training alone")
        seeds = "thin: one seed each; thick: their mean" if on_curve["seed"].nunique() > 1 else "1 seed"
        found[f"{a:g}"] = titled(
            fig, f"Where clients agree on {100 * a:.0f} % of labels, the mean is highest at {by_panel(best)}",
            f"Mean-ABM from training alone to FedAvg; {seeds}",
        )  # fmt: skip
    return found


def _width(sizes: Sequence[int]) -> float:
    return 2.9 if len(sizes) > 2 else 4.3  # three fit into one row


def by_number(table: pd.DataFrame, column: str, name: str) -> Figure:
    """Accuracy by a number, such as that of hostile clients; a line for each method, bars: 95 % interval over seeds."""
    fig, (ax,) = panel_row(1, width=5.6, height=3.4)
    table = sampling.of_one_seed(table)
    alone = sampling.by_chance(table)
    styles = looks(table["method"])
    for aside, (method, style) in zip(side_by_side(len(styles)), styles.items(), strict=True):
        own = table[table["method"] == method]
        seeds = own.groupby([column, "seed"])["value"].mean().unstack("seed")
        if alone:
            mean_line(ax, own, column, aside=aside, label=method, **style)
            continue
        half = statistics.half_width(seeds.sem(axis=1), seeds.count(axis=1))
        bars = ax.errorbar(seeds.index, seeds.mean(axis=1), half, capsize=3, label=method, **style)
        move(ax, [bars.lines[0], *bars.lines[1], *bars.lines[2]], aside)
    ax.set(xlabel=name, ylabel="accuracy of honest clients (%)")
    ax.set_xticks(sorted(table[column].unique()))
    key([ax])
    most = table[column].max()
    last = table[table[column] == most].groupby("method", sort=False)["value"].mean()
    several = "mean over clients and seeds; bars: 95 % interval over seeds"
    subtitle = sampling.note(table, "bars") if table["seed"].nunique() == 1 else several
    return titled(fig, f"Highest with {most} {name}: {highest(last)} ({last.max():.1f} %)", subtitle)


def memory(lam: float, clients: int) -> float:
    """For how many rounds a client remembers itself, (K - 1) / (K lam).

    With Mean-ABM the share 1 - lam K / (K - 1) of its deviation from the clients' mean is left after each round.
    """
    return (clients - 1) / (clients * lam)
