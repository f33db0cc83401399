"""A forest plot: many differences with their intervals, one line each."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from .canvas import panel_row, titled
from .looks import GREY, looks


def forest(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """A panel for each table of `statistics.family`, with a line for each of its comparisons.

    Dots: differences in points; bars: 95 % intervals over seeds, none for a single seed; filled: certain after Holm.
    The lines of all panels are the (group, method) of the first one that has them.
    """
    rows = list(dict.fromkeys((group, method) for table in tables.values() for group, _, method in table.index))
    places = {row: len(rows) - 1 - i for i, row in enumerate(rows)}
    fig, axes = panel_row(len(tables), width=4.2, height=0.4 + 0.24 * len(rows), sharey=True)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        ax.axvline(0, color=GREY, linewidth=1)
        styles = looks(method for _, _, method in table.index)
        for (group, _, method), row in table.iterrows():
            y, colour, certain = places[group, method], styles[method]["color"], row["verdict"] in ("above", "below")
            if pd.notna(row["low"]):
                ax.hlines(y, row["low"], row["high"], color=colour, linewidth=1.8)
            ax.plot(
                row["difference"], y, markerfacecolor=colour if certain else "white", markersize=6, **styles[method]
            )
        ax.set(xlabel="points", title=name)
    axes[0].set_yticks([places[row] for row in rows], [f"{group}: {method}" for group, method in rows])
    every = pd.concat(tables.values())
    certain = int(every["verdict"].isin(["above", "below"]).sum())
    said = f"{title}: {certain or 'none'} of {len(every)} differences {'is' if certain < 2 else 'are'} certain"
    bars = "bars: 95 % interval over seeds" if every["seeds"].max() > 1 else "one seed, so no interval"
    return titled(fig, said, f"{bars}; filled: certain after Holm")
