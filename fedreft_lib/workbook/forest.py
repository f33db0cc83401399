"""A forest plot: many differences with their intervals, one line each."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from . import figures


def forest(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """A panel for each table of `statistics.family`, with a line for each of its comparisons.

    Dots: differences in points; bars: 95 % intervals over seeds, none for a single seed; filled: certain after Holm.
    The lines of all panels are the (group, method) of the first one that has them.
    """
    rows = list(dict.fromkeys((group, method) for table in tables.values() for group, _, method in table.index))
    places = {row: len(rows) - 1 - i for i, row in enumerate(rows)}
    fig, axes = figures.panel_row(len(tables), width=4.2, height=0.4 + 0.24 * len(rows), sharey=True)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        ax.axvline(0, color=figures.GREY, linewidth=1)
        for (group, _, method), row in table.iterrows():
            colour = figures.BLUE if method.startswith("FedReFT") else figures.BLACK
            y, certain = places[group, method], row["verdict"] in ("above", "below")
            if pd.notna(row["low"]):
                ax.hlines(y, row["low"], row["high"], color=colour, linewidth=1.8)
            ax.plot(
                row["difference"], y, "o", color=colour, markerfacecolor=colour if certain else "white", markersize=6
            )
        ax.set(xlabel="points", title=name)
    axes[0].set_yticks([places[row] for row in rows], [f"{group}: {method}" for group, method in rows])
    subtitle = "bars: 95 % interval over seeds; filled: certain after Holm; blue: FedReFT"
    return figures.titled(fig, title, subtitle)
