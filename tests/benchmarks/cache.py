"""Sites in the last third of the layers: runs of several methods with cached hidden states, against without.

Each side opens its world anew, so computing the cache is in its time. There is a bound to what can be won, since the
backward pass of a step stops at the first site anyway: with sites in 10 of 30 layers a step costs 30 + 10 layers'
passes without the cache and 10 + 10 with it, so it can be twice as fast and a test three times, all else being free.
"""

from collections.abc import Iterator
from unittest import mock

import torch

from fedreft_lib import RunConfig, run, worlds
from fedreft_lib.runs import Run
from tests.benchmarks.contest import Contest, Rival, timed
from tests.benchmarks.sizes import Size

METHODS = ("local", "fedavg", "fedreft")


def contests(size: Size) -> Iterator[Contest]:
    config = RunConfig(
        backbone=size.backbone, source=size.source, dtype=size.dtypes[0], device="cpu", layers=size.top, setup="mixed",
        clients=2, train_size=16, held_out_size=1, test_size=size.questions // 2, rounds=2,
    )  # fmt: skip

    def runs(limit: int) -> list[Run]:
        with mock.patch.object(worlds, "CACHE_LIMIT", limit):
            worlds._build.cache_clear()  # nor shall a world of this side be found by anybody else
            found = [run(config.but(method=method), progress=False) for method in METHODS]
            worlds._build.cache_clear()
            return found

    def ours() -> list[Run]:
        return runs(worlds.CACHE_LIMIT)

    def theirs() -> list[Run]:
        return runs(0)

    def check() -> str:
        pairs = [(a.states, b.states) for a, b in zip(ours(), theirs(), strict=True)]
        apart = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        if worlds.shared_backbone(config.backbone, config.dtype, config.device).dtype == torch.float32:
            assert apart < 1e-3, f"the states differ by {apart:.1e} of their norm"
        return f"the states differ by {apart:.0e} of their norm"

    name = f"runs of {', '.join(METHODS)}, sites in layers {size.top}, cached"
    yield Contest(name, timed(ours), (Rival("not cached", timed(theirs), target=1 / 3),), check, most=2)
