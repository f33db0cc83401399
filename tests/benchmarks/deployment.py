"""A round of a deployment on this machine, TLS and keys and a process a host, against the same round elsewhere.

Rivals: all clients in one process; and Flower's plain way, where the process of each message loads the model. All three
make the same run, of which rounds are timed from the end of the first to the end of the last but one (the last has the
tests). The superlink and all hosts share this machine's cores, so what is measured is overhead, not what N machines do.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from fedreft_lib import Run, RunConfig, load_run, run
from tests.benchmarks.contest import Contest, Rival, Skipped
from tests.benchmarks.sizes import Size

ROUNDS = 4
THREADS = 1  # of every process, the one that has all clients too: hosts share this machine's
PLAIN = Path(__file__).parent / "plain_app"
MOST = 1800.0  # seconds of a run


def contests(size: Size) -> Iterator[Contest | Skipped]:
    name = f"a round over Flower on this machine, 2 hosts, {size.local_steps[-1]} steps each"
    if find_spec("flwr") is None:
        yield Skipped(name, "flwr is not installed")
        return
    config = RunConfig(
        backbone=size.backbone, source=size.source, dtype="float32", device="cpu", tasks=("arc_easy", "piqa"),
        clients=2, train_size=32, held_out_size=1, test_size=1, local_steps=size.local_steps[-1], rounds=ROUNDS,
        eval_every=0,
    )  # fmt: skip
    yield contest(config, name)


def contest(config: RunConfig, name: str) -> Contest:
    states: dict[str, torch.Tensor] = {}

    def side(way: Callable[[RunConfig, Path], Run]) -> Callable[[], float]:
        def seconds() -> float:
            threads = torch.get_num_threads()
            torch.set_num_threads(THREADS)
            try:
                with tempfile.TemporaryDirectory() as folder, watched(Path(folder) / "run") as ends:
                    states[way.__name__] = way(config, Path(folder) / "run").states
            finally:
                torch.set_num_threads(threads)
            return (ends[ROUNDS - 1] - ends[1]) / (ROUNDS - 2)

        return seconds

    def check() -> str:
        for each in (ours, *(rival.side for rival in rivals)):
            each()
        one, *others = states.values()
        assert all(torch.equal(one, other) for other in others), "the final states are not the same"
        return "final states are equal to the bit"

    ours = side(deployed)
    rivals = (Rival("one process", side(in_process)), Rival("a model a message", side(plainly)))
    return Contest(name, ours, rivals, check, most=1)


def in_process(config: RunConfig, folder: Path) -> Run:
    return run(config, folder, progress=False)


def deployed(config: RunConfig, folder: Path) -> Run:
    from fedreft_lib.flower import local_deployment

    with local_deployment.federation(folder.parent / "flower", config.clients, threads=THREADS) as here:
        here.wait(here.submit(config, folder), MOST)
    return load_run(folder)


def plainly(config: RunConfig, folder: Path) -> Run:
    from fedreft_lib.flower import free_port, local_deployment, program

    with local_deployment.federation(folder.parent / "flower", clients=0, threads=THREADS) as here:
        for client in range(1, config.clients + 1):
            here.start(
                f"client{client}", program("flower-supernode"), "--superlink", f"{here.address}:{here.port}",
                "--root-certificates", here.ca, "--auth-supernode-private-key", here.register(client),
                "--node-config", f'client={client} home="{folder.parent / "nodes"}"', "--port", free_port(),
            )  # fmt: skip
        here.wait(here.submit(config, folder, app=PLAIN), MOST)
    return load_run(folder)


@contextmanager
def watched(folder: Path, note: Callable[[], object] = time.perf_counter) -> Iterator[dict]:
    """What `note` says when the rounds of a run in a folder end, by round, by looking all the time."""
    from fedreft_lib.flower.local_deployment import rounds_done

    ends, over = {}, threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            if (t := rounds_done(folder)) not in ends:
                ends[t] = note()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield ends
    finally:
        over.set()
        thread.join()
