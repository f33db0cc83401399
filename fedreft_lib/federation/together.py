"""Several runs at once: their rounds go in step, and their clients share the passes of training.

For studies of many small runs: seeds, methods and mixing weights on one kept set of texts. Each run has its own folder,
randomness and server; it can stop and continue. What is shared is `training.train_runs`. A round of many runs takes a
second or so, and writing it nearly half as long, so not every round is written.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ..config import RunConfig
from ..model.device import one_thread
from ..runs.results import Run
from ..runs.store import Store
from .assembly import assemble
from .local_clients import LocalClients
from .rounds import Rest, finished_in
from .training import train_runs

AT_ONCE = 64  # runs whose states and items are in memory together
WRITTEN = 5  # every so many rounds are written, and the last one


def run_together(configs: Sequence[RunConfig], folder: str | Path | None = None, *, progress: bool = True) -> list[Run]:
    """`rounds.run` for each config, in `folder`/run_id: the same results up to rounding, sooner.

    A config that is there twice is one run. Runs whose texts are not read at their last tokens alone (engine.py) gain
    nothing. Raises what `run` raises; runs that were finished before stay finished.
    """
    found: dict[RunConfig, Run] = {}
    each = list(dict.fromkeys(configs))
    device = each[0].device if each else "cpu"
    with one_thread(device), tqdm(desc="runs", total=len(each), unit="run", disable=not progress, leave=False) as bar:
        for first in range(0, len(each), AT_ONCE):
            some = each[first : first + AT_ONCE]
            found |= zip(some, _in_step(some, folder, bar), strict=True)
    return [found[config] for config in configs]


def _in_step(configs: Sequence[RunConfig], folder: str | Path | None, bar: tqdm) -> list[Run]:
    with contextlib.ExitStack() as stack:
        stores = [Store(config, None if folder is None else Path(folder) / config.run_id) for config in configs]
        done: dict[int, Run] = {}
        for i, store in enumerate(stores):
            stack.enter_context(store.locked())
            if finished := finished_in(store):
                done[i] = finished
        bar.update(len(done))
        going = {
            i: Rest(LocalClients(assemble(store.config), store.config), store.config, store, True, False)
            for i, store in enumerate(stores)
            if i not in done
        }
        for rest in going.values():
            rest.begin(saves=False)
        for i in _rounds(going):
            done[i] = going.pop(i).run
            bar.update()
        return [done[i] for i in range(len(configs))]


def _rounds(going: dict[int, Rest]) -> Iterator[int]:
    """Goes on with all runs until they end, those first that are behind; yields the numbers of runs that have ended."""
    while going:
        yield from [i for i, rest in going.items() if rest.done >= rest.config.rounds]
        t = min((rest.done for rest in going.values()), default=0) + 1
        behind = [rest for rest in going.values() if rest.done == t - 1]
        requests = [(rest.clients.federation, rest.config, rest.to_train()) for rest in behind]
        for rest, trained in zip(behind, train_runs(requests, t), strict=True):
            rest.clients.trained = trained
            rest.go_on(saves=t % WRITTEN == 0)
