"""Kills in a Flower deployment at random instants (SIGKILL): `python -m tests.torture.deployment_kills 4`.

In turn the superlink and a node. The superlink is started again with its database, and the run is submitted again,
which goes on from the server's last checkpoint; the nodes find it by themselves. A node is started again, and the run
goes on meanwhile: it counts as absent in the rounds that it missed.

A trial survives if the run ends by itself with every round that had been written, and, after a kill of the superlink,
with the bits of a run that nobody disturbed.
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from fedreft_lib import RunConfig, load_run, run
from fedreft_lib.errors import FedReFTError
from fedreft_lib.flower import loopback
from tests.torture import equal

CONFIG = RunConfig(
    backbone="tiny-llama", source="synthetic", layers="2-3", rank=2, train_size=4, held_out_size=2, test_size=2,
    tasks=("arc_easy", "piqa", "siqa"), clients=3, rounds=3, local_steps=1,
)  # fmt: skip
MOST = 1200.0  # seconds of a run
PATIENCE = 300.0  # Flower itself says after a minute that a node is gone; a slow machine has longer


def tried(n: int, seed: int, folder: Path) -> dict:
    """Counts: tried, survived, and what went wrong by trial."""
    random.seed(seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    whole = run(CONFIG, progress=False)
    counts: dict = {"tried": 0, "survived": 0, "failed": {}}
    for i in range(n):
        victim = ("superlink", "client2")[i % 2]
        instant = random.uniform(5, 60)
        counts["tried"] += 1
        try:
            _trial(victim, instant, folder / str(i), whole)
            counts["survived"] += 1
        except (AssertionError, FedReFTError, OSError) as error:
            counts["failed"][f"{victim} after {instant:.0f} s"] = f"{type(error).__name__}: {error}"
    return counts


def _trial(victim: str, instant: float, folder: Path, whole) -> None:
    where = folder / "run"
    with loopback.federation(folder / "flower", CONFIG.clients) as here:
        number = here.submit(CONFIG, where, PATIENCE)
        time.sleep(instant)
        done = loopback.rounds_done(where)
        here.kill(victim)
        if victim == "superlink":
            here.start_superlink()
            number = _resubmitted(here, where)
        else:
            here.start_again(2)
        here.wait(number, MOST)
    found = load_run(where)
    assert found.manifest["round"] == CONFIG.rounds >= done
    if victim == "superlink":
        assert equal(found, whole), "other bits than undisturbed"
    else:
        missed = found.history[found.history["metric"].isin(("present", "answered")) & (found.history["value"] == 0)]
        others = missed[~missed["client"].str.startswith("client2")]
        assert others.empty, f"another client was hit: {others[['round', 'client', 'note']].to_dict('records')}"


def _resubmitted(here: loopback.Loopback, where: Path) -> str:
    """The run's new number, once the server's process of before has let go of the folder."""
    for _ in range(10):
        number = here.submit(CONFIG, where, PATIENCE)
        time.sleep(5)
        if not here.status(number)[0].startswith("finished:failed"):
            return number
    raise FedReFTError("the run could not be submitted again")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(tried(int(sys.argv[1]), int(*sys.argv[2:3] or [0]), Path(scratch)))
