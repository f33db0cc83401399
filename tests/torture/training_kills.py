"""Kills of training at random instants (SIGKILL): `python -m tests.torture.training_kills 200`.

A run is started in a process of its own, killed, looked at, and continued. It survives if what is on the disk can be
read, has every round that had been reported as saved, and goes on to the bits of a run that nobody disturbed.
"""

import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fedreft_lib import RunConfig, load_run, run
from fedreft_lib.errors import FedReFTError
from fedreft_lib.runs import store
from tests.torture import equal

# fedadam keeps a state on the server, late a client's update; both must come back, too.
CONFIGS = [
    RunConfig(
        backbone="tiny-llama", source="synthetic", layers="2-3", rank=2, train_size=8, held_out_size=2, test_size=4,
        rounds=4, local_steps=2, eval_every=1, late=((2, 2),), **method,
    )
    for method in ({"mixing": "adaptive"}, {"method": "fedadam"})
]  # fmt: skip


def _child(config: RunConfig, folder: Path, said: Connection) -> None:
    """Runs, and says the round after each save."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    save = store.Store.save

    def saved(store, t, *rest):
        save(store, t, *rest)
        said.send(t)

    store.Store.save = saved
    run(config, folder, progress=False)
    said.send("end")


def _start(config: RunConfig, folder: Path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedreft_lib.federation.rounds"])
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(config, folder, there))
    child.start()
    there.close()
    return child, here


def _said(pipe: Connection) -> list:
    """All that a child has said, after its end."""
    found = []
    try:
        while pipe.poll():
            found.append(pipe.recv())
    except (EOFError, OSError):  # its last word was cut off
        pass
    return found


def tried(n: int, seed: int, folder: Path) -> dict[str, int]:
    """Counts: tried, survived, torn (nothing readable), lost (rounds that had been saved), other bits at the end."""
    random.seed(seed)
    torch.set_num_threads(1)
    whole = [run(config, None, progress=False) for config in CONFIGS]
    times = []
    for config in CONFIGS:
        begun = time.monotonic()
        child, _ = _start(config, folder / f"timed-{config.method}")
        child.join()
        times.append(time.monotonic() - begun)
    counts = {"tried": 0, "survived": 0, "torn": 0, "lost": 0, "other bits": 0}
    for i in range(n):
        which = i % len(CONFIGS)
        config, place = CONFIGS[which], folder / f"run{i}"
        child, pipe = _start(config, place)
        time.sleep(random.uniform(0, 0.98 * times[which]))
        child.kill()
        child.join()
        counts["tried"] += 1
        counts[_outcome(config, place, _said(pipe), whole[which])] += 1
    return counts


def _outcome(config: RunConfig, place: Path, said: list, whole: store.Run) -> str:
    rounds = [t for t in said if t != "end"]
    try:
        if rounds and load_run(place).manifest["round"] < max(rounds):
            return "lost"
    except FedReFTError:
        return "torn"
    again = run(config, place, progress=False)
    return "survived" if equal(again, whole) and not list(place.rglob("*.tmp")) else "other bits"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(tried(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(scratch)))
