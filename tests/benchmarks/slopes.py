"""How time grows: its slope against clients, rounds, examples and length, both on log axes, on a tiny model.

Slope 1 is twice the time for twice as much. Below 1 a part of the time does not grow; above 1 something grows faster
than the work. Of many clients some are drawn for a round: its time grows with those, and a round of as many out of few
clients should take as long.
"""

import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np

from fedreft_lib import RunConfig, run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.runs import checkpoints
from tests.benchmarks import step
from tests.benchmarks.contest import Contest, Rival, timed
from tests.benchmarks.enrolled import saved_rounds
from tests.benchmarks.sizes import Size

CONFIG = RunConfig(
    backbone="tiny-llama", source="synthetic", device="cpu", setup="mixed", clients=4, train_size=8, held_out_size=1,
    test_size=1, batch_size=4,
)  # fmt: skip


def contests(size: Size) -> Iterator[Contest]:
    seconds = {
        "clients": a_round, "drawn": a_saved_round, "rounds": a_run, "examples": a_round, "length": a_step,
    }  # fmt: skip
    changed = {"drawn": "sampled", "examples": "train_size"}
    what = {a_round: "a round", a_saved_round: "a round and its file", a_run: "a run with its files", a_step: "a step"}
    for name, values in size.sweeps.items():
        title = f"slope of {what[seconds[name]]} against {name} {values}"
        yield contest(title, seconds[name], changed.get(name, name), values)
    yield out_of_many(2 * CONFIG.clients, min(size.enrolled[1], 400))


def contest(name: str, seconds: Callable[..., float], parameter: str, values: tuple[int, ...]) -> Contest:
    def slope() -> float:
        taken = [seconds(**{parameter: value}) for value in values]
        return float(np.polyfit(np.log(values), np.log(taken), 1)[0])

    def check() -> str:
        taken = [seconds(**{parameter: value}) for value in values]
        return "seconds: " + ", ".join(f"{value}: {each:.3g}" for value, each in zip(values, taken, strict=True))

    return Contest(name, slope, (Rival("linear", lambda: 1.0),), check, unit="", most=3)


def out_of_many(few: int, many: int) -> Contest:
    rivals = (Rival(f"out of {few}", lambda: a_saved_round(clients=few)),)

    def check() -> str:
        a_saved_round(clients=few), a_saved_round(clients=many)
        return "states were written of four clients, out of few and out of many"

    return Contest(
        f"a round of four clients out of {many}, and its file", lambda: a_saved_round(clients=many), rivals, check
    )


def a_round(**changes: int) -> float:
    config = CONFIG.but(**changes)
    federation = assemble(config)
    X = start(federation, config)
    return timed(lambda: federated_round(federation, config, X, 2))()  # the first is remembered


def a_saved_round(**changes: int) -> float:
    """A round of four clients drawn from a hundred, or of as many as asked for, and what is written of it."""
    config = CONFIG.but(**{"clients": 100, "sampled": 4, "train_size": 2, "rounds": 2, **changes})
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(checkpoints, "IN_ONE_FILE", 0):
        rounds = saved_rounds(config, (2,), folder)
        next(rounds)

        def work() -> None:
            assert len(next(rounds).own) == config.sampled  # nobody else's state was written

        return timed(work)()


def a_run(rounds: int) -> float:
    """All rounds of a run, each written to its folder; the federation is open before."""
    config = CONFIG.but(rounds=rounds, local_steps=1, clients=2)
    assemble(config)
    with tempfile.TemporaryDirectory() as folder:
        return timed(lambda: run(config, folder, progress=False))()


def a_step(length: int) -> float:
    model = step.loreft_of(assemble(CONFIG).model.backbone)
    return step.our_training(model, step.examples(model, length), model.start("identity", 0), steps=4)()
