"""A contest: the same work done by us and by rivals, in turns, so that what disturbs the machine disturbs them alike.

A ratio is always ours / theirs, so less is better, and a target is the largest ratio that meets it. It is taken within
each turn; the median over the turns is reported, and their quartiles as its spread.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Side = Callable[[], float]  # does the work once and says what it took: seconds, unless the contest has another unit


@dataclass(frozen=True)
class Rival:
    """What we are compared with. floor: no way of doing our work can take less (time) than this."""

    name: str
    side: Side
    target: float | None = None
    floor: bool = False


@dataclass(frozen=True)
class Contest:
    """check: has every side do its work once, which warms them up too; raises AssertionError where two of them should
    have computed the same and have not; returns what there is to say about it. most: turns that are worth their time.
    """

    name: str
    ours: Side
    rivals: tuple[Rival, ...]
    check: Callable[[], str]
    unit: str = "s"
    most: int = 99


@dataclass(frozen=True)
class Skipped:
    """A contest that cannot take place here."""

    name: str
    reason: str


class Marks(list):
    """Times at which steps ended: give it to a trainer to call after each."""

    def __call__(self) -> None:
        self.append(time.perf_counter())

    @property
    def per_step(self) -> float:
        """Seconds a step, from the end of the first to the end of the last: start-up is not in it."""
        return (self[-1] - self[0]) / (len(self) - 1)


def timed(work: Callable[[], object]) -> Side:
    """The seconds that `work` takes."""

    def side() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return side


def measured(contest: Contest, repeats: int) -> list[dict]:
    """A row of the table for each rival."""
    checked = contest.check()
    turns = min(repeats, contest.most)
    sides = [contest.ours, *(rival.side for rival in contest.rivals)]
    ours, *theirs = zip(*([side() for side in sides] for _ in range(turns)), strict=True)
    rows = []
    for rival, each in zip(contest.rivals, theirs, strict=True):
        ratios = [a / b for a, b in zip(ours, each, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if turns > 1 else ratios * 3
        row = {
            "name": f"{contest.name}, against {rival.name}",
            "ours": statistics.median(ours),
            "baseline": statistics.median(each),
            "ratio": ratio,
            "low": low,
            "high": high,
            "target": rival.target,
            "met": _met(low, high, rival.target),
            "unit": contest.unit,
            "repeats": turns,
            "note": checked,
        }
        if rival.floor:
            above = f"the floor: we are {100 * (ratio - 1):.0f} % above it"
            row["note"] = "; ".join(filter(None, [above, checked]))
        rows.append(row)
    return rows


def _met(low: float, high: float, target: float | None) -> str:
    """Whether the spread lies on one side of the target; "unclear" where the target lies within it."""
    if target is None:
        return ""
    return "yes" if high <= target else "no" if low > target else "unclear"
