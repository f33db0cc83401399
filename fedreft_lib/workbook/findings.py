"""Notebook 06 in one minute: when FedAvg, when training alone, when All-But-Me, when the median, and what it costs.

Every sentence is made from a row of the tables that it speaks of: `on_map` (study.contrasts) and `attacked`
(statistics.against by number of hostile clients). Where a row is not certain, its sentence says so.
"""

from html import escape

import pandas as pd
from matplotlib.figure import Figure

from . import statistics
from .canvas import panel_row, plain_logs, titled
from .looks import BLUE, GREY
from .study import BEST, FEDAVG, LOCAL

Finding = tuple[str, str]  # a title, and one sentence or two


def findings(on_map: pd.DataFrame, attacked: pd.DataFrame, mean: str, median: str) -> list[Finding]:
    """What the tables say, for as many of the first four as they have rows for. mean, median: methods of `attacked`."""
    over_local, over_fedavg = (_of(on_map, "against", end) for end in (LOCAL, FEDAVG))
    found: list[Finding] = []
    of_fedavg = _of(over_local, "method", FEDAVG)
    if len(of_fedavg):
        agreement = of_fedavg.index.str.extract(r"a = ([\d.]+)", expand=False).astype(float)
        most, least = (of_fedavg[agreement == each] for each in (agreement.max(), agreement.min()))
        cell = most["difference"].idxmax()
        found.append(("FedAvg, where clients agree", f"{_where(cell)} it is {_points(most.loc[cell], LOCAL)}."))
        cell = least["difference"].idxmin()
        text = f"{_where(cell)} FedAvg is {_points(least.loc[cell], LOCAL)}"
        if (cell, BEST) in over_local.index:
            text += f", and All-But-Me with its best share {_points(over_local.loc[(cell, BEST)], 'it')}"
        found.append(("Training alone, where they do not", f"{text}."))
    if len(_of(over_local, "method", BEST)):
        found.append(("All-But-Me, between the two", _ridge(over_local, over_fedavg)))
    rows = _of(_of(attacked, "against", mean), "method", median)
    if len(rows):
        few, many = rows.iloc[0], rows.iloc[-1]
        text = f"With {many.name} the median of the others is {_points(many, 'their mean')}"
        text += f"; with {few.name} it is {_points(few, 'it')}." if len(rows) > 1 else "."
        found.append(("The geometric median, where somebody is hostile", text))
    return found


def cost(numbers: int, backbone: int) -> Finding:
    """What a round costs a client. numbers: that it sends; backbone: parameters of the model."""
    each, whole = (4 * n / 1e6 for n in (numbers, backbone))
    text = f"A client sends {numbers:,} numbers a round ({each:.2f} MB) and receives as many, with any method here."
    return "The price is the same for all", f"{text} The whole model would be {whole:,.0f} MB."


def cost_picture(numbers: int, backbone: int) -> Figure:
    """The same as bars, on a logarithmic scale."""
    fig, (ax,) = panel_row(1, width=5.6, height=1.9)
    sizes = {"the whole model": backbone, "one client's interventions": numbers}
    bars = ax.barh(list(sizes), [4 * n / 1e6 for n in sizes.values()], color=[GREY, BLUE])
    ax.bar_label(bars, fmt="%.3g MB", padding=4)
    ax.set(xscale="log", xlabel="MB that a client sends in a round")
    plain_logs(ax.xaxis)
    ax.margins(x=0.25)
    title = f"In a round a client sends {100 * numbers / backbone:.2g} % of what the whole model would be"
    return titled(fig, title, "32-bit numbers; the way down is the same")


def as_html(found: list[Finding]) -> str:
    """The findings as a list."""
    return "<ul>" + "".join(f"<li><b>{escape(a)}.</b> {escape(b)}</li>" for a, b in found) + "</ul>"


def _ridge(over_local: pd.DataFrame, over_fedavg: pd.DataFrame) -> str:
    """The cell in which the best share is furthest above the nearer end, certain cells first."""
    ends = pd.concat([_of(end, "method", BEST) for end in (over_local, over_fedavg)], axis=1, keys=[LOCAL, FEDAVG])
    certain = (ends.xs("verdict", axis=1, level=1) == "above").all(axis=1)
    nearer = ends.xs("difference", axis=1, level=1).min(axis=1)
    cell = nearer[certain].idxmax() if certain.any() else nearer.idxmax()
    row = ends.loc[cell]
    said = f"the best share is {_points(row[LOCAL], LOCAL)} and {_points(row[FEDAVG], FEDAVG)}"
    if certain.any():
        others = [_where(each).lower() for each in certain.index[certain] if each != cell]
        return f"{_where(cell)} {said}." + (f" It is above both ends {' and '.join(others)}, too." if others else "")
    return f"It is certainly above both ends in no cell. It comes nearest {_where(cell).lower()}: {said}."


def _of(table: pd.DataFrame, level: str, key: str) -> pd.DataFrame:
    """The rows with this key in a level of the index, without that level; they may be none."""
    return table[table.index.get_level_values(level) == key].droplevel(level)


def _where(cell: str) -> str:
    """A cell's name in words: "a = 0.7, n = 64"."""
    a, n = (part.split(" = ")[1] for part in cell.split(", "))
    return f"With {n} texts a client and {100 * float(a):.0f} % of labels in common"


def _points(row: pd.Series, reference: str) -> str:
    """ "11.4 points above training alone (95 %: 9.3 to 13.6)", with a word on what is not certain."""
    size, reference = row["difference"], "training alone" if reference == LOCAL else reference
    said = f"{abs(size):.1f} points {'above' if size >= 0 else 'below'} {reference}"
    if pd.isna(row["low"]):
        return f"{said} ({row['verdict']})"
    if row["seeds"] < statistics.FEW:
        sure = f"; only {row['seeds']:.0f} seeds"
    else:
        sure = "" if row["verdict"] in ("above", "below") or row["verdict"].startswith("equal") else "; not certain"
    ends = sorted([row["low"], row["high"]] if size >= 0 else [-row["low"], -row["high"]])
    return f"{said} (95 %: {ends[0]:.1f} to {ends[1]:.1f}{sure})"
