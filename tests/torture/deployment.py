"""Faults in a Flower deployment with TLS and keys: `python -m tests.torture.deployment 6 15`, so many of each kind.

Hit at random instants, in turn:
    superlink   killed and started again with its database; the run is submitted again and goes on from its checkpoint
    node        killed with all that it started, and started again once the superlink takes it back
    late        the host's process is held for longer than a node is waited for, and goes on afterwards

Guests, in turn: each of the twelve bad updates, sent by one client of a run; a host with a key that nobody registered;
a host that trusts another authority; and a server that is told sums alone (SecAgg+).

A trial survives if its run ends by itself with every round that had been written, and with the bits of a run in one
process: undisturbed after a kill of the superlink and beside strangers, with the same updates refused, or where the
client that was hit drops out of the rounds that it missed. Nobody else may have missed one.
"""

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from fedreft_lib import Run, RunConfig, load_run, run
from fedreft_lib.errors import FedReFTError
from fedreft_lib.federation.attacks import BAD_UPDATES
from fedreft_lib.files import load_tensors
from fedreft_lib.flower import certificates, local_deployment
from fedreft_lib.flower.levels import Levels
from tests.torture import equal

CONFIG = RunConfig(
    backbone="tiny-llama", source="synthetic", layers="2-3", rank=2, train_size=4, held_out_size=2, test_size=2,
    tasks=("arc_easy", "piqa", "siqa"), clients=3, rounds=3, local_steps=1,
)  # fmt: skip
MOST = 1200.0  # seconds of a run
PATIENCE = 300.0  # Flower itself says after a minute that a node is gone; a slow machine has longer
HELD = 120.0  # seconds, of a late host; a third of that is waited for one


def hit(n: int, seed: int, folder: Path) -> dict:
    """Counts: tried, survived, and what went wrong by trial."""
    random.seed(seed)
    kinds = (_superlink, _node, _late)
    return _counted((kinds[i % 3].__name__[1:], kinds[i % 3], folder / f"hit{i}") for i in range(n))


def guests(n: int, seed: int, folder: Path) -> dict:
    """The same of what is sent, and of who comes: one deployment for all."""
    kinds: dict[str, Callable] = {
        attack: lambda here, where, attack=attack: _bad_update(here, where, attack) for attack in BAD_UPDATES
    }
    kinds |= {"no registered key": _no_key, "another authority": _other_authority, "sums alone": _sums}
    names = list(kinds)
    with local_deployment.federation(folder / "flower", CONFIG.clients, threads=1) as here:
        trials = ((names[i % len(names)], i) for i in range(n))
        return _counted(
            (name, lambda where, kind=kinds[name]: kind(here, where), folder / f"guest{i}") for name, i in trials
        )


def _counted(trials: Iterable[tuple[str, Callable[[Path], None], Path]]) -> dict:
    torch.set_num_threads(1)
    counts: dict = {"tried": 0, "survived": 0, "failed": {}}
    for name, trial, folder in trials:
        counts["tried"] += 1
        with contextlib.redirect_stdout(sys.stderr):
            print(f"{counts['tried']}: {name}", flush=True)
            try:
                trial(folder)
                counts["survived"] += 1
            except (AssertionError, FedReFTError) as error:
                counts["failed"][f"{counts['tried']} ({name})"] = str(error)[:500]
                print(error)
    return counts


# ---- hit ------------------------------------------------------------------------------------------------------------


def _superlink(folder: Path) -> None:
    with _running(folder, PATIENCE) as (here, _):
        here.kill("superlink")
        here.start_superlink()
        here.wait(_resubmitted(here, folder / "run"), MOST)
    assert equal(load_run(folder / "run"), run(CONFIG, progress=False)), "other bits than undisturbed"


def _node(folder: Path) -> None:
    with _running(folder, PATIENCE) as (here, number):
        here.kill("client2")
        here.start_again(2)
        here.wait(number, MOST)
    _as_if_it_dropped_out(load_run(folder / "run"))


def _late(folder: Path) -> None:
    with _running(folder, HELD / 3) as (here, number):
        os.kill(here.processes["client2"].pid, signal.SIGSTOP)
        time.sleep(HELD)
        os.kill(here.processes["client2"].pid, signal.SIGCONT)
        here.wait(number, MOST)
    _as_if_it_dropped_out(load_run(folder / "run"))


@contextlib.contextmanager
def _running(folder: Path, patience: float):
    """A deployment and its run's number, at a random instant; no round that was written then may be lost."""
    with local_deployment.federation(folder / "flower", CONFIG.clients, threads=1) as here:
        number = here.submit(CONFIG, folder / "run", patience)
        time.sleep(random.uniform(5, 45))
        done = local_deployment.rounds_done(folder / "run")
        yield here, number
    assert load_run(folder / "run").manifest["round"] == CONFIG.rounds >= done


def _as_if_it_dropped_out(found: Run) -> None:
    missed = found.history[found.history["metric"].isin(("present", "answered")) & (found.history["value"] == 0)]
    others = missed[~missed["client"].str.startswith("client2")]
    assert others.empty, f"another client was hit: {others[['round', 'client', 'note']].to_dict('records')}"
    if (missed["metric"] == "present").all():  # who trained and was not told has no like in one process
        expected = run(CONFIG.but(drops=[[2, int(t)] for t in missed["round"]]), progress=False)
        assert torch.equal(found.states, expected.states), f"other states than without rounds {[*missed['round']]}"


def _resubmitted(here: local_deployment.Loopback, where: Path) -> str:
    """The run's new number, once the server's process of before has let go of the folder."""
    for _ in range(10):
        number = here.submit(CONFIG, where, PATIENCE)
        time.sleep(5)
        if not here.status(number)[0].startswith("finished:failed"):
            return number
    raise FedReFTError("the run could not be submitted again")


# ---- guests ---------------------------------------------------------------------------------------------------------


def _bad_update(here: local_deployment.Loopback, where: Path, attack: str) -> None:
    config = CONFIG.but(hostile=1, attack=attack, rounds=1)
    _as_in_one_process(here, where, config)
    refused = load_run(where).manifest["set_aside"]
    assert [each["client"] for each in refused] == ["client3-siqa"], f"refused were {refused}"


def _no_key(here: local_deployment.Loopback, where: Path) -> None:
    key, _ = certificates.node_key(where / "stranger")
    _stranger(here, where, key, "Failed to activate SuperNode")


def _other_authority(here: local_deployment.Loopback, where: Path) -> None:
    ca, *_ = certificates.certificates(where / "other")
    _stranger(here, where, here.folder / "secrets" / "client1", "CERTIFICATE_VERIFY_FAILED", ca=ca)


def _stranger(here: local_deployment.Loopback, where: Path, key: Path, reason: str, **how) -> None:
    here.start_node(1, key, name=where.name, **how)
    _as_in_one_process(here, where / "run", CONFIG.but(rounds=1))
    assert here.processes.pop(where.name).wait(60), "it has not given up"
    assert reason in (here.folder / "logs" / f"{where.name}.log").read_text(encoding="utf-8"), "it was told nothing"


def _sums(here: local_deployment.Loopback, where: Path) -> None:
    config = CONFIG.but(rounds=1, aggregation="mean", mixing=0.5)
    here.wait(here.submit(config, where, PATIENCE, sums=True), MOST)
    levels = Levels.of(config.clients)
    newest = max((here.folder / "nodes").glob("*/client1/learned.safetensors"), key=lambda path: path.stat().st_mtime)
    paths = newest.parents[1].glob("*/learned.safetensors")
    learned = [load_tensors(path)[0]["learned"] for path in paths]
    (S,) = load_tensors(where / "sums.safetensors")[0]["S"]
    assert torch.equal(S, sum(map(levels.rounded, learned))), "the sum is not that of the clients' updates"


def _as_in_one_process(here: local_deployment.Loopback, where: Path, config: RunConfig) -> None:
    here.wait(here.submit(config, where, PATIENCE), MOST)
    assert equal(load_run(where), run(config, progress=False)), "other bits than in one process"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        times = [*map(int, sys.argv[1:3])]
        for tried, n in zip((hit, guests), times, strict=False):
            print(tried.__name__, tried(n, int(*sys.argv[3:4] or [0]), Path(scratch)), flush=True)
