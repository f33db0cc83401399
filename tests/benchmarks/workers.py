"""A round of four clients in two processes with a thread each, against the same round in one process.

The rival with as many threads as there are processes is what a run was before it had workers; its last bits depend on
the number of threads.
"""

from collections.abc import Iterator

import torch

from fedreft_lib import RunConfig
from fedreft_lib.core.training import Trained
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.training import train_clients
from fedreft_lib.federation.work import Work, in_turn
from fedreft_lib.federation.workers import working
from fedreft_lib.model.device import one_thread
from tests.benchmarks.contest import Contest, Rival, timed
from tests.benchmarks.sizes import Size

ROUND, PROCESSES = 2, 2  # the first round is remembered


def contests(size: Size) -> Iterator[Contest]:
    for dtype in size.dtypes:
        config = RunConfig(
            backbone=size.backbone, source=size.source, dtype=dtype, device="cpu", method="local", clients=4,
            train_size=16, held_out_size=1, test_size=1, local_steps=2, max_length=size.lengths[0], engine="one_by_one",
        )  # fmt: skip
        federation = assemble(config)
        states = dict(enumerate(map(federation.model.spec.named, start(federation, config))))

        def trained(work: Work, config=config, federation=federation, states=states) -> list[Trained]:
            return list(train_clients(federation, config, states, ROUND, work=work).values())

        def alone(trained=trained) -> list[Trained]:
            with one_thread():
                return trained(in_turn)

        def threaded(trained=trained) -> list[Trained]:
            before = torch.get_num_threads()
            torch.set_num_threads(PROCESSES)
            try:
                return trained(in_turn)
            finally:
                torch.set_num_threads(before)

        with working(federation, config, PROCESSES) as work:

            def ours(trained=trained, work=work) -> list[Trained]:
                return trained(work)

            def check(sides=(ours, alone, threaded), federation=federation) -> str:
                rows = [torch.stack([federation.model.spec.row(each.state) for each in side()]) for side in sides]
                assert torch.equal(*rows[:2]), "two processes compute other bits than one"
                return "the same bits as with one thread here"

            rivals = (
                Rival(f"one process with {PROCESSES} threads", timed(threaded), target=1 / 1.12),
                Rival("one process with one thread", timed(alone)),
            )
            yield Contest(f"a round of 4 clients, {PROCESSES} processes, {dtype}", timed(ours), rivals, check)
