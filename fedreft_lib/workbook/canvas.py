"""The paper that pictures are drawn on: panels no wider than a report's column, a title that fits, and a key.

Sizes are inches, and a picture is shown with SHOWN_DPI pixels for each, so that 9 points are 11 pixels. A title says
what to see, and wraps. Its second line says what is averaged, and what the bars are.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import offset_copy

from . import sampling

SHOWN_DPI = 88  # screen pixels per inch
WIDEST = 11.0  # inches: wider pictures would be shrunk to the report's column, and their letters with them
ASIDE = 2.2  # inches beside the panels, for names on the left and a key on the right
TITLE = {"fontsize": 12, "fontweight": "bold"}
SUBTITLE = {"fontsize": 10}
HEADING = {"fontsize": 11}  # of a panel
LINE = 0.25  # inches from one line of the title to the next


def panel_row(n: int, *, width: float, height: float, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """n panels, each of the given size, in as many rows as WIDEST asks for. A plain Figure, not pyplot's."""
    down = math.ceil(n / max(1, int((WIDEST - ASIDE) / width)))
    across = math.ceil(n / down)
    fig = Figure(figsize=(across * width + ASIDE, down * height + 0.8), layout="constrained")
    axes = list(fig.subplots(down, across, squeeze=False, sharey=sharey).flat)
    for ax in axes[n:]:
        ax.remove()
    for ax in axes[:n]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return fig, axes[:n]


def label_rows(axes: Sequence[Axes], label: str) -> None:
    """The y label of each row of panels, on its first one."""
    for ax in axes:
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(label)


def key(axes: Sequence[Axes], title: str | None = None) -> Legend:
    """One key for all panels, right of the first row. The picture grows where the key is taller than the panel."""
    found = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in found}
    top = min(ax.get_subplotspec().rowspan.start for ax in axes)
    last = [ax for ax in axes if ax.get_subplotspec().rowspan.start == top][-1]
    fig, rows = last.figure, last.get_subplotspec().get_gridspec().nrows
    panel = fig.get_figheight() / rows
    fig.set_figheight(rows * max(panel, 0.22 * len(found) + 1.2))
    style = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False, "alignment": "left"}
    return last.legend(list(found.values()), list(found), title=title, **style)


def plain_logs(axis: Axis) -> None:
    """Ticks of a logarithmic axis as 0.01, 1 and 100k: the exponents of 10^-2, 10^0 and 10^5 are too small to read."""

    def plain(value: float, _: int) -> str:
        size, unit = next(((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if value >= max(s, 1e4)), (1, ""))
        return f"{value / size:g}{unit}"

    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_formatter(NullFormatter())


def titled(fig: Figure, title: str, subtitle: str) -> Figure:
    """The picture with its title, and with headings of panels that are no wider than the panels.

    The picture grows by what these need beyond one line each, so that the panels keep their size.
    """
    headings = {ax: ax.get_title() for ax in fig.axes if ax.get_title()}
    if headings:
        fig.draw_without_rendering()  # panels get their sizes
    split = {ax: wrapped(fig, text, ax.bbox.width, **HEADING) for ax, text in headings.items()}
    for ax, parts in split.items():
        ax.set_title("\n".join(parts), **HEADING)
    longest = max(map(len, split.values()), default=1)
    room = 0.97 * fig.bbox.width
    lines, below = wrapped(fig, title, room, **TITLE), wrapped(fig, subtitle, room, **SUBTITLE)
    tall = fig.get_figheight() + LINE * (len(lines) + len(below) + longest - 3)
    fig.set_figheight(tall)
    head = 0.1 + LINE * len(lines), 0.14 + LINE * (len(lines) + len(below))  # inches from the top: where each part ends
    style = {"x": 0.01, "ha": "left", "va": "top"}
    main = fig.suptitle("\n".join(lines), y=1 - 0.08 / tall, linespacing=1.5, **style, **TITLE)
    main.set_in_layout(False)
    fig.text(s="\n".join(below), y=1 - head[0] / tall, color="#444444", linespacing=1.3, **style, **SUBTITLE)
    fig.get_layout_engine().set(rect=(0, 0, 1, 1 - head[1] / tall))
    return fig


def wrapped(fig: Figure, text: str, room: float, **font) -> list[str]:
    """The text in lines of at most `room` pixels, broken between words but not within "λ 0.3" or "λ = 0.3".

    A word that is longer has a line of its own.
    """
    whole = re.sub(r"λ( =)? (?=\d)", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    lines: list[str] = []
    for word in whole.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        probe = Text(0, 0, longer, **font)
        probe.set_figure(fig)
        if lines and probe.get_window_extent().width <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def mean_line(ax: Axes, rows: pd.DataFrame, x: str, *, band: bool = True, aside: float = 0.0, **style) -> None:
    """The mean over clients and then seeds of `value` against column x, with `sampling.spread`.

    That is a band over several seeds, and dotted bars for one. aside: how many points to the right a line with such
    bars is moved, since the bars of several would hide each other.
    """
    line = pd.DataFrame({at: sampling.spread(own) for at, own in rows.groupby(x)}, ["mean", "low", "high"]).T
    drawn: list[Artist] = ax.plot(line.index, line["mean"], **style)
    if band and line["low"].notna().any():
        if sampling.by_chance(rows):
            drawn.append(ax.vlines(line.index, line["low"], line["high"], color=style["color"], linestyle=":"))
            move(ax, drawn, aside)
        else:
            shade = (*to_rgb(style["color"]), 0.18)
            ax.fill_between(line.index, line["low"], line["high"], color=shade, linewidth=0)


def move(ax: Axes, artists: Iterable[Artist], aside: float) -> None:
    """Move what has been drawn by so many points to the right; the limits of the axes stay."""
    for artist in artists:
        artist.set_transform(offset_copy(ax.transData, ax.figure, x=aside, units="points"))


def side_by_side(n: int) -> list[float]:
    """Where n lines stand: points to the right of their place."""
    return [5.0 * (i - (n - 1) / 2) for i in range(n)]


def bar(ax: Axes, place: float, spread: tuple[float, float, float], *, dotted: bool, **style) -> None:
    """A dot at the mean of (mean, low, high), in a row at this place, with a bar between the others if they are known.

    Dotted and without caps is a bar of `sampling.interval`, which must not be taken for one over seeds.
    """
    mean, low, high = spread
    ends = None if math.isnan(low) else [[mean - low], [high - mean]]
    drawn = ax.errorbar(mean, place, xerr=ends, capsize=0 if dotted else 4, linewidth=1.6, **style)
    for lines in drawn.lines[2]:
        lines.set_linestyle(":" if dotted else "-")


def listed(words: Iterable[str]) -> str:
    """ "a, b and c" """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def highest(values: pd.Series, digits: int = 1) -> str:
    """The names of the highest values; several where they are equal to this many digits."""
    return listed(map(str, values.index[values.round(digits) == values.round(digits).max()]))


def by_panel(best: Mapping[str, str]) -> str:
    """What is highest in each panel: "FedAvg", or "FedAvg (mixed and iid) and local only (distinct)"."""
    panels: dict[str, list[str]] = {}
    for panel, name in best.items():
        panels.setdefault(name, []).append(panel)
    return listed(panels if len(panels) == 1 else (f"{name} ({listed(where)})" for name, where in panels.items()))
