"""The round and the run.

A round is a pure function: `federated_round(world, config, X, t) -> (X', report)`, X (N, P) the clients' states.
What is random in it depends on (seed, t, client) alone, so a run can be stopped after any round and continued to the
same bits, and runs that begin alike share the work of their beginning.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import evaluate, hostile, mixing, participation, runs
from .admission import Update, refusal, refusals
from .aggregation import Aggregate, mixing_matrix
from .client_states import ClientStates
from .config import RunConfig
from .engine import engine_of
from .errors import FedReFTError
from .gauge import align
from .interventions import State
from .listening import Listening
from .randomness import derive
from .robust import norm_clipped
from .rotation import orthonormality_error, retract
from .runs import Run
from .states import Spec, hash_of
from .steering import SteeredModel
from .strategies import STRATEGIES
from .strategies.base import Sent, alike
from .training import participants, train_clients
from .worlds import Client, Encoded, Labels, World, open_world, partition_of

LATE = "late."  # before the place of a client whose update arrives in the next round, in the server's memory
FOR_ALL = "for all."  # before the names of the newest state that the server holds for all, there too

States = TypeVar("States", Tensor, ClientStates)  # X (N, P), at hand or not


@dataclass
class Report:
    """What happened in a round: rows for the history, who listened to whom, and what the server remembers of it."""

    listening: Listening
    clients: int
    rows: list[dict] = field(default_factory=list)
    memory: State = field(default_factory=dict)

    @property
    def M(self) -> Tensor:
        """(N, N)"""
        return self.listening.among(self.clients)

    def add(self, round: int, client: str, split: str, metric: str, value: float, **more: float | str) -> None:
        self.rows.append({"round": round, "client": client, "split": split, "metric": metric, "value": value, **more})


def start(world: World, config: RunConfig) -> Tensor:
    """X (N, P) before the first round: everybody starts from one state, or averages would mix different gauges."""
    return enrolled(world, config).all


def enrolled(world: World, config: RunConfig) -> ClientStates:
    """`start` for any number of clients."""
    state = STRATEGIES[config.method].begin(world, config, common_start(world, config))
    return ClientStates(world.model.spec.row(state), len(participants(world, config)))


def common_start(world: World, config: RunConfig) -> State:
    """What the seed alone says of the start."""
    return world.model.start(config.init, derive(config.seed, "start"))


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
    memory = memory or {}
    held = {int(name.removeprefix(LATE)): row for name, row in memory.items() if name.startswith(LATE)}
    away = participation.away(config, t)
    who = [k for k in range(len(X)) if k in held or k not in away]
    kept = {name: tensor for name, tensor in memory.items() if not name.startswith(LATE)}
    report = Report(Listening(tuple(who), torch.eye(len(who))), len(X), memory=kept)
    rows = _round_of(world, config, X[who], who, t, held, report, on_step)
    return X.index_copy(0, torch.tensor(who, dtype=torch.long), rows), report


def _round_of(
    world: World, config: RunConfig, X: Tensor, who: list[int], t: int, held: dict[int, Tensor], report: Report, on_step
) -> Tensor:
    """The rows (n, P) of those who take part after round t, from their rows before it. `report` is filled in.

    held: the rows of those who were late in the round before, by client. Below here n clients are numbered by their
    places in `who`.
    """
    spec, strategy = world.model.spec, STRATEGIES[config.method]
    X = _brought_up_to_date(world, config, X, who, t, report)
    before = [spec.named(row) for row in X]
    arrived = _collect(world, config, X, who, t, held, report, on_step)
    learned, weights, reasons = list(before), torch.zeros(len(who)), []
    found = refusals(list(arrived.values()), [before[i] for i in arrived], spec, config.norm_limit)
    for (i, update), reason in zip(arrived.items(), found, strict=True):
        if reason is None:
            learned[i], weights[i] = update.state, update.examples
        else:
            reasons.append(f"{update.client} {reason}")
        report.add(t, update.client, "train", "admitted", float(reason is None), note=reason or "")

    after, answers = learned, []
    if strategy.aggregate:
        if (admitted := int((weights > 0).sum())) < config.min_clients:
            why = f" ({'; '.join(reasons)})" if reasons else ""
            raise FedReFTError(
                f"round {t} has {admitted} admitted updates and needs {config.min_clients}{why}: the run stops, "
                "and its last checkpoint stays for another try"
            )
        if config.align:
            reference = common_start(world, config)
            learned = [align(state, reference) for state in learned]
        aggregate, answers = _server(world, config, before, learned, weights, report.memory)
        lam, losses = _lam(world, config, learned, answers, {i: who[i] for i in arrived}, t)
        after = list(before)
        for i in arrived:
            after[i] = _taken_in(world, config, learned[i], answers[i], float(lam[i]), t)
        report.listening = Listening(tuple(who), mixing_matrix(aggregate.A, lam))
        for i, update in arrived.items():
            residual = float(aggregate.residual[i])
            report.add(t, update.client, "server", "residual", residual, downlink_bytes=_bytes(answers[i]))
            report.add(t, update.client, "held_out", "lam", float(lam[i]))
            for candidate, loss in losses.get(i, {}).items():
                report.add(t, update.client, "held_out", f"loss at lam {candidate:g}", loss)
    retracted = [_retracted(world, config, state) if i in arrived else state for i, state in enumerate(after)]
    if world.model.adapter.rotated:
        for metric, states in (("orthonormality_error_before_retraction", after), ("orthonormality_error", retracted)):
            for i, update in arrived.items():
                error = max(orthonormality_error(states[i][name]) for name in world.model.adapter.rotated)
                report.add(t, update.client, "state", metric, error)
    if strategy.one_for_all and arrived and participation.some_miss_rounds(config):
        first = next(iter(arrived))
        names = {*answers[first], *_sent_names(world, config)}
        report.memory |= {f"{FOR_ALL}{name}": retracted[first][name].clone() for name in sorted(names)}
    return torch.stack([spec.row(state) for state in retracted])


def _brought_up_to_date(
    world: World, config: RunConfig, X: Tensor, who: list[int], t: int, report: Report
) -> Tensor:
    """Where the server holds one state for all, each begins with the newest of it. (n, P) -> (n, P)"""
    newest, spec = _held_for_all(report.memory), world.model.spec
    if not newest:
        return X
    clients, rows = participants(world, config), torch.stack([spec.row({**spec.named(row), **newest}) for row in X])
    for k, row, own in zip(who, rows, X, strict=True):
        if not torch.equal(row, own):
            report.add(t, clients[k].name, "server", "brought up to date", 1.0, downlink_bytes=_bytes(newest))
    return rows


def _held_for_all(memory: State) -> State:
    """The newest of what the server holds for all; nothing where its method, or nobody's absence, asks for that."""
    return {name.removeprefix(FOR_ALL): tensor for name, tensor in memory.items() if name.startswith(FOR_ALL)}


def _collect(
    world: World,
    config: RunConfig,
    X: Tensor,
    who: list[int],
    t: int,
    held: dict[int, Tensor],
    report: Report,
    on_step: Callable[[], object],
) -> dict[int, Update]:
    """What reaches the server in round t, by place; who is gone, drops out or is late is noted in the report.

    held: the rows of those who were late in the round before. Those of this round go to report.memory.
    """
    spec, names = world.model.spec, _sent_names(world, config)
    clients = participants(world, config)
    for k, reason in participation.gone(config, t).items():
        if k not in who:
            report.add(t, clients[k].name, "train", "present", 0.0, note=reason)
    rows = dict(zip(who, X, strict=True))
    trained = train_clients(world, config, rows, [k for k in who if k not in held], t, on_step)
    arrived: dict[int, Update] = {}

    def uplink(i: int) -> int:
        return _bytes({name: x for name, x in arrived[i].state.items() if name in names}) if i in arrived else 0

    for i, k in enumerate(who):
        name, examples = clients[k].name, len(clients[k].train)
        if k in held:
            arrived[i] = Update(name, spec.named(held[k]), examples)
            note = "with its update of the round before"
            report.add(t, name, "train", "present", 1.0, note=note, uplink_bytes=uplink(i))
            continue
        arrived[i] = hostile.sent_by(config, k, name, t, spec.named(X[i]), trained[k].state, examples)
        loss = sum(trained[k].losses) / len(trained[k].losses)
        late, lost = participation.is_late(config, k, t), participation.drops_out(config, k, t)
        if late and refusal(arrived[i].state, examples, spec) is None:
            report.memory[f"{LATE}{k}"] = spec.row(arrived[i].state)
        if late or lost:
            del arrived[i]
            note = "late: its update arrives in the next round" if late else "dropped out: nothing arrives"
            report.add(t, name, "train", "present", 0.0, note=note)
        report.add(t, name, "train", "loss", loss, uplink_bytes=uplink(i), seconds=trained[k].seconds)
    return arrived


def _sent_names(world: World, config: RunConfig) -> tuple[str, ...]:
    """What a client sends: what its method says, and the head unless that is private."""
    strategy = STRATEGIES[config.method]
    if not strategy.aggregate:
        return ()
    head = () if config.head == "private" else world.model.head_names
    return (*strategy.sends(world.model.adapter_names, world.model.adapter.kind, config), *head)


def _server(
    world: World, config: RunConfig, before: list[State], learned: list[State], weights: Tensor, memory: State
) -> tuple[Aggregate, list[State]]:
    """Who listened to whom, and what each client is told. `memory` is changed in place."""
    strategy = STRATEGIES[config.method]
    names = _sent_names(world, config)
    apart = world.model.head_names if config.head == "averaged" else ()
    names = tuple(name for name in names if name not in apart)
    spec = Spec(tuple(each for each in world.model.spec.shapes if each[0] in names))
    X, x = (torch.stack([spec.row({n: state[n] for n in names}) for state in states]) for states in (learned, before))
    if config.norm_clip is not None:
        X = norm_clipped(X, x, weights, config.norm_clip)
    aggregate = strategy.aggregate(X, weights, config)
    answers = strategy.answer(Sent(X, x, weights, spec, config, world.model.adapter.kind, memory), aggregate)
    if apart:
        shares = (weights / weights.sum()).tolist()
        head = {n: sum(p * state[n] for p, state in zip(shares, learned, strict=True)) for n in apart}
        answers = [{**answer, **head} for answer in answers]
    return aggregate, answers


def _taken_in(world: World, config: RunConfig, state: State, answer: State, lam: float, t: int) -> State:
    """The client's side: the head's mean whole, everything else as the method has it."""
    apart = world.model.head_names if config.head == "averaged" else ()
    rest = {name: tensor for name, tensor in answer.items() if name not in apart}
    after = STRATEGIES[config.method].take_in(world.model, state, rest, lam, config, t)
    return {**after, **{name: answer[name] for name in apart}}


def _lam(
    world: World, config: RunConfig, learned: list[State], answers: list[State], arrived: dict[int, int], t: int
) -> tuple[Tensor, dict[int, dict]]:
    """Each lam (n,), 0 for those of whom nothing arrived, and for adaptive mixing the held-out losses behind it,
    {place: {candidate: loss}}. arrived: the client in each place."""
    lam, places = torch.zeros(len(learned), dtype=torch.float64), list(arrived)
    rule = STRATEGIES[config.method].mixing(config)
    if rule == "scheduled":
        rule = mixing.scheduled(config, t)
    if rule != "adaptive":
        lam[places] = float(rule)
        return lam, {}

    def held_out_loss(number: int, lam: float) -> float:
        i = places[number]
        state = _retracted(world, config, _taken_in(world, config, learned[i], answers[i], lam, t))
        return evaluate.loss(world.model, state, world.clients[arrived[i]].held_out, config.batch_size)

    lam[places], losses = mixing.adaptive(config.mixing_grid, len(places), held_out_loss)
    grid = sorted(set(config.mixing_grid))
    return lam, {i: dict(zip(grid, row.tolist(), strict=True)) for i, row in zip(places, losses, strict=True)}


def _retracted(world: World, config: RunConfig, state: State) -> State:
    return {**state, **{name: retract(state[name], config.retraction) for name in world.model.adapter.rotated}}


def evaluate_all(
    world: World,
    config: RunConfig,
    X: Tensor | ClientStates | None,
    t: int,
    *,
    memory: State | None = None,
    progress: bool = False,
) -> list[dict]:
    """Every client's scores on its own test, and on the union where `union_size` asks for it.

    Where the server holds one state for all (`memory`), all but those who are gone are tested with the newest of it.
    X None is the untrained backbone, without any intervention (with the untrained head, where the task needs one).
    Labelled held-out items are scored too: ReFT picks the epoch, and we the round, by them.
    """
    report = Report(Listening((), torch.eye(0)), len(world.clients))
    gone, newest = participation.gone(config, t), _held_for_all(memory or {})
    begin = common_start(world, config)
    head = {name: begin[name] for name in world.model.head_names}
    own_shares = STRATEGIES[config.method].test_share is not alike
    on_union: dict[tuple, list] = {}  # clients that share one state share its result
    for k, client in enumerate(tqdm(world.clients, desc="testing", unit="client", disable=not progress, leave=False)):
        row = None if X is None else X[k if len(X) > 1 else 0]
        if row is not None and newest and k not in gone:
            row = world.model.spec.row({**world.model.spec.named(row), **newest})
        ask = functools.partial(_scores, world, config, head if row is None else world.model.spec.named(row), client)
        parts = [("test", part) for part in client.test]
        if isinstance(client.held_out, Labels):
            parts.append(("held_out", client.held_out))
        for split, part in parts:
            # The untrained backbone is asked once for all runs; options that are read together round together.
            key = ("untrained", client.name, split, type(part), config.batch_size, config.max_new_tokens, hash_of(head))
            scores = ask(part) if row is not None else world.remembered(key, functools.partial(ask, part))
            for task, metric, value in scores:
                report.add(t, client.name, split, metric, value, task=task)
        if world.union and row is not None:
            key = (hash_of({"X": row}), client.name if own_shares else "")
            if key not in on_union:
                on_union[key] = [score for part in world.union for score in ask(part)]
            for _, metric, value in on_union[key]:
                report.add(t, client.name, "union", metric, value, task="union")
    return report.rows


def _scores(world: World, config: RunConfig, state: State, client: Client, part: Encoded) -> list[evaluate.Score]:
    """The scores of the model under a state; of the untrained backbone where it has no more than a head."""
    untrained = set(state) <= set(world.model.head_names)
    share = None if untrained else STRATEGIES[config.method].test_share(world, config, state, client, part)
    return evaluate.scores(part, world.model, state or None, config, share)


def run(config: RunConfig, folder: str | Path | None = None, resume: bool = True, *, progress: bool = True) -> Run:
    """Run a federation, or continue it.

    folder: where config, history, manifest and checkpoints go; None keeps them in memory only. With resume=True a
    run in the folder continues after its last whole round and a finished one is returned as it is; a run of another
    config in the folder is refused (ConfigError), one of other code or data is started again.
    """
    store = runs.Store(config, folder)
    with store.alone():
        if resume and (finished := store.finished(lambda: partition_of(config))):
            return finished
        return _run(config, store, resume, progress)


def _run(config: RunConfig, store: runs.Store, resume: bool, progress: bool) -> Run:
    """Whatever rounds of the run are missing."""
    world = open_world(config)
    store.describe(world, trained_names(world.model, config), engine_of(config, world.model.backbone.device))
    begin = enrolled(world, config)
    saved = store.resume(begin) if resume else store.afresh(begin)
    X, memory, done = saved.states, saved.memory, saved.manifest["round"]
    rows, listening = saved.history.to_dict("records"), list(saved.listening)
    steps = [p.steps for p in participants(world, config)]
    total = sum(steps) * (config.sampled or len(steps)) // len(steps) * (config.rounds - done)
    with tqdm(desc=config.run_id, total=total, unit="step", disable=not progress, leave=False) as bar:
        if not rows:
            rows = evaluate_all(world, config, None, 0, progress=progress)
            X = store.save(0, X, listening, rows, memory)
        for t in range(done + 1, config.rounds + 1):
            X, report = federated_round(world, config, X, t, bar.update, memory=memory)
            memory = report.memory
            rows, listening = rows + report.rows, [*listening, report.listening]
            if t == config.rounds or (config.eval_every and t % config.eval_every == 0):
                rows = rows + evaluate_all(world, config, X, t, memory=memory, progress=progress)
            X = store.save(t, X, listening, rows, memory)
    return store.run(X, listening, rows, memory)


def _bytes(tensors: State) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())
