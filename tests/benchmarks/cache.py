"""Sites in the upper layers: runs of several methods with kept hidden states, against without.

Each side opens its federation anew, in an empty cache folder, so computing the hidden states is in its time. There is a
bound to what can be won, since the backward pass of a step stops at the first site anyway: with sites in 10 of 30
layers a step costs 30 + 10 layers' passes without the cache and 10 + 10 with it, so it can be twice as fast and a test
three times, all else being free. With sites in five of thirty layers it is three and a half times, and six. The output
layer, which costs as much as eight blocks for each answer token, is on top on both sides.
"""

import tempfile
from collections.abc import Iterator
from unittest import mock

import torch

from fedreft_lib import RunConfig, run
from fedreft_lib.federation import assembly
from fedreft_lib.model.fast import hidden_cache, hidden_files
from fedreft_lib.model.shared import shared_backbone
from fedreft_lib.runs.results import Run
from tests.benchmarks.contest import Contest, Rival, timed
from tests.benchmarks.sizes import Size

METHODS = ("local", "fedavg", "fedreft")


def contests(size: Size) -> Iterator[Contest]:
    for layers in size.tops:
        yield _contest(size, layers)


def _contest(size: Size, layers: str) -> Contest:
    config = RunConfig(
        backbone=size.backbone, source=size.source, dtype=size.dtypes[0], device="cpu", layers=layers, setup="mixed",
        clients=2, train_size=16, held_out_size=1, test_size=size.questions // 2, rounds=4,
    )  # fmt: skip

    def ours() -> list[Run]:
        with tempfile.TemporaryDirectory() as empty, mock.patch.dict("os.environ", FEDREFT_HIDDEN_STATES=empty):
            return _runs(config)

    def theirs() -> list[Run]:
        with mock.patch.object(hidden_files, "DISK_LIMIT", 0), mock.patch.object(hidden_cache, "MEMORY_LIMIT", 0):
            return _runs(config)

    def check() -> str:
        pairs = [(a.states, b.states) for a, b in zip(ours(), theirs(), strict=True)]
        apart = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        if shared_backbone(config.backbone, config.dtype, config.device).dtype == torch.float32:
            assert apart < 1e-3, f"the states differ by {apart:.1e} of their norm"
        return f"the states differ by {apart:.0e} of their norm"

    name = f"runs of {', '.join(METHODS)}, sites in layers {layers}, cached"
    return Contest(name, timed(ours), (Rival("not cached", timed(theirs), target=1 / 3),), check, most=2)


def _runs(config: RunConfig) -> list[Run]:
    assembly._build.cache_clear()  # nor shall a federation of this side be found by anybody else
    found = [run(config.but(method=method), progress=False) for method in METHODS]
    assembly._build.cache_clear()
    return found
