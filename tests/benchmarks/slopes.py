"""How time grows: its slope against clients, rounds, examples and length, both on log axes, on a tiny model.

Slope 1 is twice the time for twice as much. Below 1 a part of the time does not grow; above 1 something grows faster
than the work.
"""

import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from fedreft_lib import RunConfig, run
from fedreft_lib.federation import federated_round, start
from fedreft_lib.worlds import open_world
from tests.benchmarks import step
from tests.benchmarks.contest import Contest, Rival, timed
from tests.benchmarks.sizes import Size

CONFIG = RunConfig(
    backbone="tiny-llama", source="synthetic", device="cpu", setup="mixed", clients=4, train_size=8, held_out_size=1,
    test_size=1, batch_size=4,
)  # fmt: skip


def contests(size: Size) -> Iterator[Contest]:
    seconds = {"clients": a_round, "rounds": a_run, "examples": a_round, "length": a_step}
    changed = {"clients": "clients", "rounds": "rounds", "examples": "train_size", "length": "length"}
    what = {"clients": "a round", "rounds": "a run with its files", "examples": "a round", "length": "a step"}
    for name, values in size.sweeps.items():
        yield contest(f"slope of {what[name]} against {name} {values}", seconds[name], changed[name], values)


def contest(name: str, seconds: Callable[..., float], parameter: str, values: tuple[int, ...]) -> Contest:
    def slope() -> float:
        taken = [seconds(**{parameter: value}) for value in values]
        return float(np.polyfit(np.log(values), np.log(taken), 1)[0])

    def check() -> str:
        taken = [seconds(**{parameter: value}) for value in values]
        return "seconds: " + ", ".join(f"{value}: {each:.3g}" for value, each in zip(values, taken, strict=True))

    return Contest(name, slope, (Rival("linear", lambda: 1.0),), check, unit="", most=3)


def a_round(**changes: int) -> float:
    config = CONFIG.but(**changes)
    world = open_world(config)
    X = start(world, config)
    return timed(lambda: federated_round(world, config, X, 2))()  # the first is remembered


def a_run(rounds: int) -> float:
    """All rounds of a run, each written to its folder; the world is open before."""
    config = CONFIG.but(rounds=rounds, local_steps=1, clients=2)
    open_world(config)
    with tempfile.TemporaryDirectory() as folder:
        return timed(lambda: run(config, folder, progress=False))()


def a_step(length: int) -> float:
    model = step.loreft_of(open_world(CONFIG).model.backbone)
    return step.our_training(model, step.examples(model, length), model.start("identity", 0), steps=4)()
