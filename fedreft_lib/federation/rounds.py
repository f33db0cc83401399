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
from ..methods import METHODS
from ..model.fast.hidden_cache import offer
from ..model.identity import backbone_identity, may_be_same
from ..runs.client_states import ClientStates
from ..runs.item_scores import taken_out
from ..runs.results import Run
from ..runs.store import Store
from . import participation, server
from .assembly import Federation, assemble
from .dealing import partition_of
from .local_clients import LocalClients
from .server import Clients, Report

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
) -> tuple[States, Report]:
    """Round t (from 1): local training, admission, aggregation, mixing, retraction. X (N, P) -> X' (N, P).

    memory: the server's tensors from earlier rounds; `report.memory` holds those after this round. The round reads and
    changes only the rows of the clients that take part. Raises FedReFTError where too few updates are admitted.
    """
    return _next_round(LocalClients(federation, config), config, X, t, memory or {}, on_step)


def _next_round(
    clients: Clients, config: RunConfig, X: States, t: int, memory: State, on_step: Callable[[], object]
) -> tuple[States, Report]:
    held, away = server.late_rows(memory), participation.away(config, t)
    who = [k for k in range(len(X)) if k in held or k not in away]
    rows, report = server.round_of(clients, clients.model.layout, config, X[who], who, t, memory, on_step)
    return X.index_copy(0, torch.tensor(who, dtype=torch.long), rows), report


def run(config: RunConfig, folder: str | Path | None = None, resume: bool = True, *, progress: bool = True) -> Run:
    """Run a federation, or continue it.

    folder: for config, history, manifest and checkpoints; None keeps them in memory only. With resume=True a run in the
    folder continues after its last complete round, and a finished run is returned at once. A run in the folder with
    other code, data or backbone starts again; one with another config raises ConfigError.
    """
    store = Store(config, folder)
    with store.locked():
        fixed = config.source == "packaged"  # the code contains the hashes of packaged data
        if resume and (finished := store.finished(lambda: _questions(config), same_backbone, fixed=fixed)):
            return finished
        return rest_of(LocalClients(assemble(config), config), config, store, resume, progress)


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
    store.describe(clients.model.spec, facts_of(clients, config))
    begin = clients.begin()
    saved = store.resume(begin) if resume else store.fresh(begin)
    X, memory, done = saved.states, saved.memory, saved.manifest["round"]
    rows, items, listening = saved.history.to_dict("records"), saved.items, list(saved.listening)
    total = sum(_steps_in(clients, config, t) for t in range(done + 1, config.rounds + 1))
    with tqdm(desc=config.run_id, total=total, unit="step", disable=not progress, leave=False) as bar:
        if not rows:
            rows, items = taken_out(clients.evaluate(None, 0, memory, progress))
            X = store.save(0, X, listening, rows, memory, items)
        for t in range(done + 1, config.rounds + 1):
            X, report = _next_round(clients, config, X, t, memory, bar.update)
            memory = report.memory
            rows, listening = rows + report.rows, [*listening, report.listening]
            if t == config.rounds or (config.eval_every and t % config.eval_every == 0):
                scores, of_items = taken_out(clients.evaluate(X, t, memory, progress))
                rows, items = rows + scores, items | of_items
            X = store.save(t, X, listening, rows, memory, items)
    return store.run(X, listening, rows, memory, items)


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
