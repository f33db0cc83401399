"""How time and memory grow with enrolled clients, with parameters, and with the clients of a geometric median.

A row is a slope on log axes, fitted over all sizes: 1 is twice as much for twice the size, 0 no growth. Where growth
begins late that hides it, so the note has every value. Each size is a process of its own (grown_federation.py,
grown_medians.py) and runs once.
"""

import json
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from tests.benchmarks import peak, spent
from tests.benchmarks.contest import Contest, Rival, Skipped
from tests.benchmarks.grown_federation import parameters
from tests.benchmarks.sizes import Size

STATES = 4  # drawn where states grow: a round holds many copies of each
SAID = {
    "opened": "processor seconds to open a federation",
    "round": "processor seconds of a round and its file",
    "memory": "memory",
    "seconds": "processor seconds",
    "iterations": "iterations",
}


def contests(size: Size) -> Iterator[Contest | Skipped]:
    if not peak.STATUS.exists():
        yield Skipped("growth", "the system does not tell a process its peak memory as Linux does")
        return
    few, width, drawn = size.grown_clients[0], size.grown_width, size.drawn
    enrolled = Sweep(size.grown_clients, lambda clients: said_by("grown_federation", clients, 64, 1, drawn))
    yield from enrolled.contests("enrolled clients", ("opened", "round", "memory"))
    states = Sweep(
        tuple(parameters(width, rank) for rank in size.grown_ranks),
        lambda numbers: said_by("grown_federation", few, width, numbers // parameters(width, 1), min(drawn, STATES)),
    )
    yield from states.contests("parameters of a client", ("round", "memory"))
    medians = Sweep(size.grown_medians, lambda clients: said_by("grown_medians", clients, size.grown_columns))
    yield from medians.contests("clients of a geometric median", ("seconds", "memory", "iterations"))


def said_by(program: str, *numbers: int) -> dict[str, float]:
    return json.loads(spent.ran(spent.of_module(f"tests.benchmarks.{program}", *numbers)).said)


class Sweep:
    """What each size takes, measured once, for whoever asks."""

    def __init__(self, sizes: tuple[int, ...], measure: Callable[[int], dict[str, float]]):
        self.sizes, self.measure = sizes, measure

    @cached_property
    def found(self) -> list[dict[str, float]]:
        return [self.measure(size) for size in self.sizes]

    def contests(self, against: str, names: tuple[str, ...]) -> Iterator[Contest]:
        few, many = self.sizes[0], self.sizes[-1]
        for name in names:
            title = f"slope of {SAID[name]} against {against}, {few:,} to {many:,}"
            rivals = (Rival("linear", lambda: 1.0),)
            yield Contest(
                title, lambda name=name: self.slope(name), rivals, lambda name=name: self.values(name), unit="", most=1
            )

    def slope(self, name: str) -> float:
        return float(np.polyfit(np.log(self.sizes), np.log([each[name] for each in self.found]), 1)[0])

    def values(self, name: str) -> str:
        unit = " (MB)" if name == "memory" else ""
        pairs = zip(self.sizes, self.found, strict=True)
        return f"{SAID[name]}{unit}: " + ", ".join(f"{size:,}: {each[name]:.3g}" for size, each in pairs)
