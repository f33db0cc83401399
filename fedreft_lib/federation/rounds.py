"""One round, and a run of many.

A round is a pure function: `federated_round(federation, config, X, t) -> (X', report)`, where X (N, P) holds the
clients' states. All randomness depends only on (seed, t, client). A run can therefore stop after any round and continue
with the same bits, and runs that begin alike share the work of their beginning.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..config import RunConfig
from ..core.state import Layout, State
from ..data.partition import data_fingerprint
from ..environment import environment
from ..errors import FedReFTError
from ..memory import trim
from ..methods import METHODS
from ..model.device import one_thread
from ..model.fast.hidden_cache import offer
from ..model.identity import backbone_identity, may_be_same
from ..runs.client_states import ClientStates
from ..runs.item_scores import taken_out
from ..runs.results import Run
from ..runs.store import Store
from . import participation, server
from . import workers as processes
from .assembly import Federation, assemble
from .dealing import partition_of
from .local_clients import LocalClients
from .server import Clients, Report
from .work import Work, in_turn

States = TypeVar("States", Tensor, ClientStates)  # X (N, P), in memory or partly on disk


def trained_names(layout: Layout, config: RunConfig) -> tuple[str, ...]:
    """Names of the tensors that a client trains in any phase of any round, without the head's."""
    phases = [p for t in (1, 2) for p in METHODS[config.method].phases(layout.adapter_names, layout.kind, config, t)]
    return tuple(name for name in layout.adapter_names if any(name in phase.trains for phase in phases))


def federated_round(
    federation: Federation,
    config: RunConfig,
    X: States,
    t: int,
    on_step: Callable[[], object] = lambda: None,
    *,
    memory: State | None = None,
    work: Work = in_turn,
) -> tuple[States, Report]:
    """Round t (from 1): local training, admission, aggregation, mixing, retraction. X (N, P) -> X' (N, P).

    memory: the server's tensors from earlier rounds; `report.memory` holds those after this round. The round reads and
    changes only the rows of the clients that take part. work: where clients are computed, see `workers.working`. Raises
    FedReFTError where too few updates are admitted.
    """
    with one_thread(config.device):
        return _next_round(LocalClients(federation, config, work), config, X, t, memory or {}, on_step)


def _next_round(
    clients: Clients, config: RunConfig, X: States, t: int, memory: State, on_step: Callable[[], object]
) -> tuple[States, Report]:
    who = _who(config, len(X), t, memory)
    rows, report = server.round_of(clients, clients.model.layout, config, X[who], who, t, memory, on_step)
    return X.index_copy(0, torch.tensor(who, dtype=torch.long), rows), report


def _who(config: RunConfig, clients: int, t: int, memory: State) -> list[int]:
    """The clients of round t: those that are not away, and those whose update was late in the round before."""
    held, away = server.late_rows(memory), participation.away(config, t)
    return [k for k in range(clients) if k in held or k not in away]


def run(
    config: RunConfig,
    folder: str | Path | None = None,
    resume: bool = True,
    *,
    progress: bool = True,
    workers: int | None = None,
) -> Run:
    """Run a federation, or continue it.

    folder: for config, history, manifest and checkpoints; None keeps them in memory only. With resume=True a run in the
    folder continues after its last complete round, and a finished run is returned at once. A run in the folder with
    other code, data or backbone starts again; one with another config raises ConfigError.
    workers: processes that compute clients side by side on a CPU, each with one thread; None: as many as torch has
    threads here, where the run is long enough to gain by it. The bits do not depend on it. Where processes cannot be
    forked (not on Linux), a script that asks for workers needs `if __name__ == "__main__":` around its calls.
    """
    processes.check(workers)
    threads, store = torch.get_num_threads(), Store(config, folder)
    with store.locked(), one_thread(config.device):
        if resume and (finished := finished_in(store)):
            return finished
        federation = assemble(config)
        number = workers or processes.by_rule(federation, config, threads)
        with processes.working(federation, config, number) as work:
            return rest_of(LocalClients(federation, config, work), config, store, resume, progress)


def finished_in(store: Store) -> Run | None:
    """The run in a store's folder, where it is finished and as it would be computed here; else None."""
    fixed = store.config.source == "packaged"  # the code contains the hashes of packaged data
    return store.finished(lambda: _questions(store.config), same_backbone, fixed=fixed)


def _questions(config: RunConfig) -> str:
    return data_fingerprint(partition_of(config))


def same_backbone(config: RunConfig, known: str) -> bool:
    """Whether the backbone in a run's manifest (`known`) may be the one that its config names here and now."""
    return may_be_same(known, backbone_identity(config.backbone))


def federation_of(done: Run) -> Federation:
    """The federation of a run's states. Raises FedReFTError where the data or the backbone have changed since."""
    federation = assemble(done.config)
    here = {"data": data_fingerprint(federation.questions), "backbone": federation.model.backbone.identity}
    if other := [key for key, found in here.items() if done.manifest[key] != found]:
        raise FedReFTError(
            f"{done.folder or done.config.run_id} was made with other {' and '.join(other)} than there are now: run it "
            "again, or put those back"
        )
    return federation


def rest_of(clients: Clients, config: RunConfig, store: Store, resume: bool, progress: bool) -> Run:
    """Computes the missing rounds of a run."""
    rest = Rest(clients, config, store, resume, progress)
    total = sum(_steps_in(clients, config, t) for t in range(rest.done + 1, config.rounds + 1))
    with tqdm(desc=config.run_id, total=total, unit="step", disable=not progress, leave=False) as bar:
        rest.begin()
        while rest.done < config.rounds:
            rest.go_on(bar.update)
    trim()  # what the steps have left, before pandas is imported for the history
    return rest.run


class Rest:
    """A run that goes on, round by round, from its last complete round (`done`)."""

    def __init__(self, clients: Clients, config: RunConfig, store: Store, resume: bool, progress: bool):
        self.clients, self.config, self.store, self.progress = clients, config, store, progress
        store.describe(clients.model.spec, facts_of(clients, config))
        start = clients.begin()
        saved = store.resume(start) if resume else store.fresh(start)
        self.X, self.memory, self.done = saved.states, saved.memory, saved.manifest["round"]
        self.rows, self.items = list(saved.rows), saved.items
        self.round_mixing = list(saved.round_mixing)

    def begin(self, saves: bool = True) -> None:
        """Tests the untrained backbone, unless an earlier process has done so. saves: as in `go_on`."""
        if not self.rows:
            self._evaluate(None, 0)
            if saves or self.config.rounds == 0:
                self._save(0)

    def to_train(self) -> dict[int, State]:
        """The state from which each client begins to train in the next round."""
        who = _who(self.config, len(self.X), self.done + 1, self.memory)
        return server.to_train(self.clients.model.layout, self.X[who], who, self.memory)

    def go_on(self, on_step: Callable[[], object] = lambda: None, saves: bool = True) -> None:
        """The next round. saves: whether to write it; the last one always is."""
        t, config = self.done + 1, self.config
        self.X, report = _next_round(self.clients, config, self.X, t, self.memory, on_step)
        self.memory = report.memory
        self.rows, self.round_mixing = self.rows + report.rows, [*self.round_mixing, report.round_mixing]
        if t == config.rounds or (config.eval_every and t % config.eval_every == 0):
            self._evaluate(self.X, t)
        if saves or t == config.rounds:
            self._save(t)
        self.done = t

    def _evaluate(self, X: ClientStates | None, t: int) -> None:
        scores, of_items = taken_out(self.clients.evaluate(X, t, self.memory, self.progress))
        self.rows, self.items = self.rows + scores, self.items | of_items

    def _save(self, t: int) -> None:
        self.X = self.store.save(t, self.X, self.round_mixing, self.rows, self.memory, self.items)

    @property
    def run(self) -> Run:
        return self.store.run(self.X, self.round_mixing, self.rows, self.memory, self.items)


def _steps_in(clients: Clients, config: RunConfig, t: int) -> int:
    """Optimiser steps of all clients that are not away in round t."""
    away = participation.away(config, t)
    return sum(steps for k, steps in enumerate(clients.steps) if k not in away)


def facts_of(clients: Clients, config: RunConfig) -> dict:
    """For the manifest: what a run depends on apart from its config."""
    model, backbone, layout = clients.model, clients.model.backbone, clients.model.layout
    ways = model.ways(clients.longest, writes=clients.writes)  # how the model reads the longest text
    sizes = {name: math.prod(shape) for name, shape in layout.spec.shapes}
    return {
        **environment(backbone.device),
        "backbone": backbone.identity,
        "weights": backbone.fingerprint,
        "data": clients.questions,
        "dtype": str(backbone.dtype),
        "reading": str(ways),
        "cut": clients.cut,
        "cache": offer(model, config, ways),
        "seed": config.seed,
        "engine": clients.engine,
        "adapted": model.adapter.adapted,
        "trainable_params": sum(sizes[name] for name in trained_names(layout, config)),
        "head_params": sum(sizes[name] for name in layout.head_names),
        "spec": [[name, list(shape)] for name, shape in layout.spec.shapes],
    }
