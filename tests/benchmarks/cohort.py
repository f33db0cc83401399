"""A step of four clients in one pass, against one client after another: what federation.engine's rule rests on.

A task for each client, so that their texts differ in length as in Distinct Task.
"""

from collections.abc import Iterator

import torch

from fedreft_lib import RunConfig
from fedreft_lib.core.training import Trained
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.training import train_client as train
from fedreft_lib.model.fast.cohort import train_together
from tests.benchmarks.contest import Contest, Rival, timed
from tests.benchmarks.sizes import Size

TASKS = ("arc_easy", "boolq", "piqa", "siqa")


def contests(size: Size) -> Iterator[Contest]:
    for dtype in size.dtypes:
        for batch_size in size.batches:
            yield _contest(size, dtype, batch_size)


def _contest(size: Size, dtype: str, batch_size: int) -> Contest:
    config = RunConfig(
        backbone=size.backbone, source=size.source, dtype=dtype, device="cpu", layers=size.tops[0], method="local",
        tasks=TASKS, clients=4, batch_size=batch_size, train_size=max(16, 2 * batch_size), held_out_size=1, test_size=1,
    )  # fmt: skip
    federation = assemble(config)
    states = [federation.model.spec.named(row) for row in start(federation, config)]
    datas, seeds = [client.train for client in federation.clients], range(len(states))

    def cohort() -> list[Trained]:
        return train_together(federation.model, states, datas, config, steps=size.steps, seeds=seeds)

    def one_by_one() -> list[Trained]:
        return [
            train(federation.model, state, data, config, steps=size.steps, seed=seed)
            for state, data, seed in zip(states, datas, seeds, strict=True)
        ]

    def check() -> str:
        rows = [[federation.model.spec.row(each.state) for each in side] for side in (cohort(), one_by_one())]
        apart = max(float((a - b).norm() / b.norm()) for a, b in zip(*rows, strict=True))
        if federation.model.backbone.dtype == torch.float32:
            assert apart < 1e-5, f"the states differ by {apart:.1e} of their norm"
        return f"the states differ by {apart:.0e} of their norm"

    name = f"{size.steps} steps of 4 clients, batches of {batch_size}, {dtype}, in one pass"
    return Contest(name, timed(cohort), (Rival("one after another", timed(one_by_one)),), check)
