"""Many clients of whom few are drawn for a round: the memory of a run does not grow with those who wait.

Each side is a process of its own, `python -m tests.benchmarks.enrolled CLIENTS BACKBONE SOURCE DTYPE LAYERS DRAWN`,
which opens the federation, trains and writes some rounds, and prints its peak resident memory (VmHWM) in bytes.
Nobody is tested: a test of all clients is as much work as they are.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator

from fedreft_lib import RunConfig
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import LocalClients, enrolled
from fedreft_lib.federation.rounds import facts_of, federated_round
from fedreft_lib.runs import store
from fedreft_lib.runs.client_states import ClientStates
from tests.benchmarks import peak
from tests.benchmarks.contest import Contest, Rival, Skipped
from tests.benchmarks.sizes import Size

ROUNDS = range(1, 9)


def contests(size: Size) -> Iterator[Contest | Skipped]:
    few, many = size.enrolled
    name = f"peak memory of a run of {ROUNDS.stop - 1} rounds, {size.drawn} drawn from {many:,} clients"
    if not peak.STATUS.exists():
        yield Skipped(name, "the system does not tell a process its peak memory as Linux does")
        return
    fixed = (size.backbone, size.source, size.dtypes[0], size.tops[0], size.drawn)

    def gigabytes(clients: int) -> float:
        return peak.printed_by("tests.benchmarks.enrolled", clients, *fixed) / 1e9

    def check() -> str:
        return "VmHWM of a process of its own: model, everybody's questions, and the states of those who are drawn"

    rivals = (Rival(f"drawn from {few}", lambda: gigabytes(few)),)
    yield Contest(name, lambda: gigabytes(many), rivals, check, unit="GB", most=1)


def saved_rounds(config: RunConfig, rounds: Iterable[int], folder: str) -> Iterator[ClientStates]:
    """The states at the start and after each round, once they are in their file."""
    federation, kept = assemble(config), store.Store(config, folder)
    kept.describe(federation.model.spec, facts_of(LocalClients(federation, config), config))
    X = kept.save(0, enrolled(federation, config), [], [], {}, {})
    yield X
    for t in rounds:
        after, report = federated_round(federation, config, X, t)
        X = kept.save(t, after, [report.round_mixing], report.rows, report.memory, {})
        yield X


def main() -> None:
    clients, backbone, source, dtype, layers, drawn = sys.argv[1:]
    config = RunConfig(
        backbone=backbone, source=source, dtype=dtype, device="cpu", layers=layers, setup="mixed", train_size=2,
        held_out_size=1, test_size=1, local_steps=1, clients=int(clients), sampled=int(drawn), rounds=len(ROUNDS),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for _ in saved_rounds(config, ROUNDS, folder):
            pass
    print(peak.resident())


if __name__ == "__main__":
    main()
