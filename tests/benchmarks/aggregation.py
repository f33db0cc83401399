"""The leave-one-out geometric medians of a large federation: time, memory, and share of a round.

Rival: Weiszfeld's iteration as it is usually written, over the points themselves, once for each client. It is timed for
one client at a time, another in each turn, and multiplied by their number.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from fedreft_lib.core.aggregation import all_but_me
from fedreft_lib.federation.training import train_client as train
from fedreft_lib.model.encoding import AnswerSet
from tests.benchmarks import peak, step
from tests.benchmarks.contest import Contest, Rival, Skipped, timed
from tests.benchmarks.sizes import Size


def contests(size: Size) -> Iterator[Contest | Skipped]:
    name = f"aggregation, {size.clients} x {size.parameters:,}"
    if peak.STATUS.exists():  # in a process of its own, before this one has the matrix too
        yield memory(size, f"{name}, memory beyond the input")
    else:
        yield Skipped(f"{name}, memory", "the system does not tell a process its peak memory as Linux does")
    X = peak.matrix(size.clients, size.parameters)
    yield against_direct(X, name)
    for length in size.lengths:
        for steps in size.local_steps:
            yield share_of_a_round(X, size, length, steps)


def direct(X: Tensor, k: int, tolerance: float = 1e-6) -> Tensor:
    """The geometric median (P,) of all rows of X but row k."""
    weights = torch.ones(len(X)).index_fill_(0, torch.tensor(k), 0.0)
    z = weights @ X / weights.sum()
    for _ in range(1000):
        pull = weights / (X - z).norm(dim=1).clamp_min(1e-12)
        before, z = z, pull @ X / pull.sum()
        if (z - before).norm() <= tolerance * z.norm():
            break
    return z


def against_direct(X: Tensor, name: str) -> Contest:
    turn = itertools.count(1)

    def one_client() -> float:
        return len(X) * timed(lambda: direct(X, next(turn) % len(X)))()

    def check() -> str:
        found, z = all_but_me(X), direct(X, 0)
        away = float((found.aggregate[0] - z).norm() / (X[1:] - z).norm(dim=1).min())
        assert away < 1e-3, f"the two medians are {away:.1e} of the nearest client's distance apart"
        residual = float(found.residual.max())
        return f"{away:.0e} of the nearest client's distance apart; our largest residual {residual:.0e}"

    rivals = (Rival(f"Weiszfeld for one client x {len(X)}", one_client, target=1 / 50),)
    return Contest(name, timed(lambda: all_but_me(X)), rivals, check)


def share_of_a_round(X: Tensor, size: Size, length: int, steps: int) -> Contest:
    model = step.loreft(size, size.dtypes[0])
    sequences, state, config = step.examples(model, length), model.start("identity", 0), step.CONFIG

    def a_client() -> None:
        train(model, state, AnswerSet(sequences, None), config, steps=steps, seed=0)

    def check() -> str:
        a_client()
        return "one client after another; states of the 3B model, steps of the small one"

    rivals = (Rival(f"{len(X)} clients' training", lambda: len(X) * timed(a_client)(), target=0.01),)
    name = f"aggregation in a round, {size.dtypes[0]}, prompts of {length}, steps of a client: {steps}"
    return Contest(name, timed(lambda: all_but_me(X)), rivals, check)


def memory(size: Size, name: str) -> Contest:
    given = 4 * size.clients * size.parameters / 1e9

    def ours() -> float:
        return peak.printed_by("tests.benchmarks.peak", size.clients, size.parameters) / 1e9

    rivals = (Rival("the matrix", lambda: given, target=2),)
    return Contest(name, ours, rivals, lambda: "VmHWM of a process of its own", unit="GB", most=1)
