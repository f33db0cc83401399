"""The round and the run.

A round is a pure function: `federated_round(world, config, X, t) -> (X', report)`, X (N, P) the clients' states.
What is random in it depends on (seed, t, client) alone, so a run can be stopped after any round and continued to the
same bits, and runs that begin alike share the work of their beginning.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import client, participation, runs, server, testing
from .client import Learned, Taken, common_start
from .client_states import ClientStates
from .config import RunConfig
from .cuts import Cuts
from .engine import engine_of
from .errors import FedReFTError
from .heads import check_classes
from .interventions import State
from .partition import classes_of
from .runs import Run
from .server import Report
from .steering import SteeredModel
from .strategies import STRATEGIES
from .training import participants, train_clients
from .worlds import World, open_world, partition_of

States = TypeVar("States", Tensor, ClientStates)  # X (N, P), at hand or not


class Federation(server.Clients, Protocol):
    """All that a run asks of its clients, wherever they are."""

    model: SteeredModel
    engine: str
    questions: str  # a hash of who holds which
    longest: int  # tokens of their longest text
    writes: bool  # whether the model writes, in tests
    cut: dict[str, Cuts]  # what of their texts does not fit into max_length
    steps: list[int]  # of each client in a round

    def begin(self) -> ClientStates:
        """Everybody's state before the first round."""

    def tested(self, X: ClientStates | None, t: int, memory: State, progress: bool) -> list[dict]:
        """`testing.evaluate_all`"""


class InProcess:
    """A federation whose clients are all in this process."""

    def __init__(self, world: World, config: RunConfig):
        self.world, self.config, self.model = world, config, world.model
        self.longest, self.writes = world.longest, world.writes
        check_classes({client.name: classes_of(client) for client in world.questions}, config)
        self.cut = world.cut
        self.participants = participants(world, config)
        self.names = [p.name for p in self.participants]
        self.examples, self.steps = [len(p.train) for p in self.participants], [p.steps for p in self.participants]

    @property
    def engine(self) -> str:
        return engine_of(self.config, self.model.backbone.device)

    @property
    def questions(self) -> str:
        return runs.data_fingerprint(self.world.questions)

    def begin(self) -> ClientStates:
        return enrolled(self.world, self.config)

    def train(
        self, before: dict[int, State], missed: dict[int, State], t: int, on_step: Callable[[], object]
    ) -> dict[int, Learned]:
        rows = {k: self.model.spec.row(state) for k, state in before.items()}
        trained = train_clients(self.world, self.config, rows, list(before), t, on_step)
        return {
            k: client.learned(self.model, self.config, k, t, self.participants[k], before[k], each)
            for k, each in trained.items()
        }

    def take_in(
        self, states: dict[int, State], answers: dict[int, State | None], refused: set[int], t: int
    ) -> dict[int, Taken]:
        return {k: client.take_in(self.world, self.config, k, t, state, answers[k]) for k, state in states.items()}

    def tested(self, X: ClientStates | None, t: int, memory: State, progress: bool) -> list[dict]:
        return testing.evaluate_all(self.world, self.config, X, t, memory=memory, progress=progress)


def start(world: World, config: RunConfig) -> Tensor:
    """X (N, P) before the first round: everybody starts from one state, or averages would mix different gauges."""
    return enrolled(world, config).all


def enrolled(world: World, config: RunConfig) -> ClientStates:
    """`start` for any number of clients."""
    strategy, everybody = STRATEGIES[config.method], participants(world, config)
    state = common_start(world.model, config)
    told = [strategy.told(world.model, config, state, each) for each in world.clients]
    state = strategy.begin(world.model, config, state, told, max(each.steps for each in everybody))
    return ClientStates(world.model.spec.row(state), len(everybody))


def trained_names(model: SteeredModel, config: RunConfig) -> tuple[str, ...]:
    """The tensors that a client trains in some phase of some round, without the head's."""
    kind = model.adapter.kind
    phases = [p for t in (1, 2) for p in STRATEGIES[config.method].phases(model.adapter_names, kind, config, t)]
    return tuple(name for name in model.adapter_names if any(name in phase.trains for phase in phases))


def federated_round(
    world: World,
    config: RunConfig,
    X: States,
    t: int,
    on_step: Callable[[], object] = lambda: None,
    *,
    memory: State | None = None,
) -> tuple[States, Report]:
    """Round t (from 1): local training, admission, aggregation, mixing, retraction. X (N, P) -> X' (N, P).

    memory: what the server kept of the rounds before, for methods whose server has a state; `report.memory` is what it
    keeps of this one. Of X the rows of those who take part are read, and of X' they are new.
    """
    return _next_round(InProcess(world, config), config, X, t, memory or {}, on_step)


def _next_round(
    federation: Federation, config: RunConfig, X: States, t: int, memory: State, on_step: Callable[[], object]
) -> tuple[States, Report]:
    held, away = server.held_back(memory), participation.away(config, t)
    who = [k for k in range(len(X)) if k in held or k not in away]
    rows, report = server.round_of(federation, federation.model, config, X[who], who, t, memory, on_step)
    return X.index_copy(0, torch.tensor(who, dtype=torch.long), rows), report


def run(config: RunConfig, folder: str | Path | None = None, resume: bool = True, *, progress: bool = True) -> Run:
    """Run a federation, or continue it.

    folder: where config, history, manifest and checkpoints go; None keeps them in memory only. With resume=True a
    run in the folder continues after its last whole round and a finished one is returned as it is; a run of another
    config in the folder is refused (ConfigError), one of other code, data or backbone is started again.
    """
    store = runs.Store(config, folder)
    with store.alone():
        fixed = config.source == "packaged"  # the code names the packages by their hashes
        if resume and (finished := store.finished(lambda: runs.data_fingerprint(partition_of(config)), fixed=fixed)):
            return finished
        return rest_of(InProcess(open_world(config), config), config, store, resume, progress)


def world_of(done: Run) -> World:
    """The world that a run's states belong to. Raises FedReFTError where data or backbone are not what they were."""
    world = open_world(done.config)
    here = {"data": runs.data_fingerprint(world.questions), "backbone": world.model.backbone.identity}
    if other := [key for key, found in here.items() if done.manifest[key] != found]:
        raise FedReFTError(
            f"{done.folder or done.config.run_id} was made with other {' and '.join(other)} than there are now: run it "
            "again, or put those back"
        )
    return world


def rest_of(federation: Federation, config: RunConfig, store: runs.Store, resume: bool, progress: bool) -> Run:
    """Whatever rounds of the run are missing."""
    model = federation.model
    ways = model.ways(federation.longest, writes=federation.writes)
    store.describe(model, federation.questions, trained_names(model, config), federation.engine, ways, federation.cut)
    begin = federation.begin()
    saved = store.resume(begin) if resume else store.afresh(begin)
    X, memory, done = saved.states, saved.memory, saved.manifest["round"]
    rows, listening = saved.history.to_dict("records"), list(saved.listening)
    total = sum(_steps_in(federation, config, t) for t in range(done + 1, config.rounds + 1))
    with tqdm(desc=config.run_id, total=total, unit="step", disable=not progress, leave=False) as bar:
        if not rows:
            rows = federation.tested(None, 0, memory, progress)
            X = store.save(0, X, listening, rows, memory)
        for t in range(done + 1, config.rounds + 1):
            X, report = _next_round(federation, config, X, t, memory, bar.update)
            memory = report.memory
            rows, listening = rows + report.rows, [*listening, report.listening]
            if t == config.rounds or (config.eval_every and t % config.eval_every == 0):
                rows = rows + federation.tested(X, t, memory, progress)
            X = store.save(t, X, listening, rows, memory)
    return store.run(X, listening, rows, memory)


def _steps_in(federation: Federation, config: RunConfig, t: int) -> int:
    """Of all who are there in round t."""
    away = participation.away(config, t)
    return sum(steps for k, steps in enumerate(federation.steps) if k not in away)
