"""The ratios as a picture: a dot for each, with its spread and its target."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from fedreft_lib.workbook.canvas import panel_row, titled
from fedreft_lib.workbook.looks import BLACK, BLUE, GREY, ORANGE, RED
from tests.benchmarks import machine

# By shape and by colour, so that either alone tells them apart.
MARKS = {"yes": ("o", BLUE), "no": ("X", RED), "unclear": ("D", ORANGE), "": ("s", GREY)}
SAID = {"yes": "target met", "no": "target missed", "unclear": "target within the spread", "": "no target"}


def ratios(rows: pd.DataFrame) -> Figure:
    """Columns as in bench.csv. The first row is at the top."""
    fig, (ax,) = panel_row(1, width=13, height=1.4 + 0.32 * len(rows))
    for met, own in rows.reset_index(drop=True).groupby("met"):
        shape, colour = MARKS[met]
        spread = np.stack([own["ratio"] - own["low"], own["high"] - own["ratio"]])
        style = {"fmt": shape, "color": colour, "markeredgecolor": BLACK, "markeredgewidth": 0.6, "markersize": 8}
        ax.errorbar(own["ratio"], own.index, xerr=spread, ecolor=BLACK, capsize=3, label=SAID[met], **style)
        for place, ratio in own["ratio"].items():
            ax.annotate(f"{ratio:.3g}", (ratio, place), (0, 8), textcoords="offset points", ha="center", fontsize=9)
    aimed = rows.reset_index(drop=True)["target"].dropna()
    ax.plot(aimed, aimed.index, "|", color=BLACK, markersize=14, markeredgewidth=2, label="target: this or less")
    ax.axvline(1, color=GREY, linestyle="--", linewidth=1.2, label="as much as the other")
    ax.set_xscale("log")
    wide = rows["ratio"].max() > 30 * rows["ratio"].min()
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.08)
    ax.set_yticks(range(len(rows)), rows["name"])
    ax.set(xlabel="ours / theirs, log scale (left is better)", ylim=(len(rows) - 0.4, -0.9))
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    title = "What our work costs, as a multiple of what it is compared with"
    return titled(fig, title, f"marks: medians; bars: quartiles; {machine.warning(dict(rows.iloc[0]))}")
