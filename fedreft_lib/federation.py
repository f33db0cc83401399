"""The round and the run.

A round is a pure function: `federated_round(world, config, X, t) -> (X', report)`, X (N, P) the clients' states.
What is random in it depends on (seed, t, client) alone, so a run can be stopped after any round and continued to the
same bits, and runs that begin alike share the work of their beginning.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import evaluate, hostile, mixing, participation, runs
from .admission import Update, refusal, refusals
from .aggregation import Aggregate, mixing_matrix
from .config import RunConfig
from .engine import engine_of
from .errors import FedReFTError
from .gauge import align
from .interventions import State
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


@dataclass
class Report:
    """What happened in a round: rows for the history, who listened to whom, and what the server remembers of it."""

    M: Tensor  # (N, N)
    rows: list[dict] = field(default_factory=list)
    memory: State = field(default_factory=dict)

    def add(self, round: int, client: str, split: str, metric: str, value: float, **more: float | str) -> None:
        self.rows.append({"round": round, "client": client, "split": split, "metric": metric, "value": value, **more})


def start(world: World, config: RunConfig) -> Tensor:
    """X (N, P) before the first round: everybody starts from one state, or averages would mix different gauges."""
    state = STRATEGIES[config.method].begin(world, config, common_start(world, config))
    return world.model.spec.row(state).repeat(len(participants(world, config)), 1)


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
    X: Tensor,
    t: int,
    on_step: Callable[[], object] = lambda: None,
    *,
    memory: State | None = None,
) -> tuple[Tensor, Report]:
    """Round t (from 1): local training, admission, aggregation, mixing, retraction. X (N, P) -> X' (N, P).

    memory: what the server kept of the rounds before, for methods whose server has a state; `report.memory` is what it
    keeps of this one.
    """
    spec, strategy, clients = world.model.spec, STRATEGIES[config.method], participants(world, config)
    held = {int(name.removeprefix(LATE)): row for name, row in (memory or {}).items() if name.startswith(LATE)}
    report = Report(torch.eye(len(clients)), memory={n: m for n, m in (memory or {}).items() if not n.startswith(LATE)})
    before = [spec.named(row) for row in X]
    arrived = _collect(world, config, X, t, held, report, on_step)
    learned, weights, reasons = list(before), torch.zeros(len(clients)), []
    found = refusals(list(arrived.values()), [before[k] for k in arrived], spec, config.norm_limit)
    for (k, update), reason in zip(arrived.items(), found, strict=True):
        if reason is None:
            learned[k], weights[k] = update.state, update.examples
        else:
            reasons.append(f"{update.client} {reason}")
        report.add(t, update.client, "train", "admitted", float(reason is None), note=reason or "")

    after = learned
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
        lam, losses = _lam(world, config, learned, answers, list(arrived), t)
        after = list(before)
        for k in arrived:
            after[k] = _taken_in(world, config, learned[k], answers[k], float(lam[k]), t)
        report.M = mixing_matrix(aggregate.A, lam)
        for k, update in arrived.items():
            residual = float(aggregate.residual[k])
            report.add(t, update.client, "server", "residual", residual, downlink_bytes=_bytes(answers[k]))
            report.add(t, update.client, "held_out", "lam", float(lam[k]))
            for candidate, loss in losses.get(k, {}).items():
                report.add(t, update.client, "held_out", f"loss at lam {candidate:g}", loss)
    retracted = [_retracted(world, config, state) if k in arrived else state for k, state in enumerate(after)]
    if world.model.adapter.rotated:
        for metric, states in (("orthonormality_error_before_retraction", after), ("orthonormality_error", retracted)):
            for k, update in arrived.items():
                error = max(orthonormality_error(states[k][name]) for name in world.model.adapter.rotated)
                report.add(t, update.client, "state", metric, error)
    return torch.stack([spec.row(state) for state in retracted]), report


def _collect(
    world: World, config: RunConfig, X: Tensor, t: int, held: dict[int, Tensor], report: Report, on_step
) -> dict[int, Update]:
    """What reaches the server in round t, by client; who is away, drops out or is late is noted in the report.

    held: the rows of those who were late in the round before. Those of this round go to report.memory.
    """
    spec, names, away = world.model.spec, _sent_names(world, config), participation.away(config, t)
    arrived: dict[int, Update] = {}

    def uplink(k: int) -> int:
        return _bytes({name: x for name, x in arrived[k].state.items() if name in names}) if k in arrived else 0

    clients = participants(world, config)
    trained = train_clients(world, config, X, [k for k in range(len(clients)) if k not in {*held, *away}], t, on_step)
    for k, client in enumerate(clients):
        examples = len(client.train)
        if k in held:
            arrived[k] = Update(client.name, spec.named(held[k]), examples)
            note = "with its update of the round before"
            report.add(t, client.name, "train", "present", 1.0, note=note, uplink_bytes=uplink(k))
        elif k in away:
            report.add(t, client.name, "train", "present", 0.0, note=away[k])
            continue
        else:
            arrived[k] = hostile.sent_by(config, k, client.name, t, spec.named(X[k]), trained[k].state, examples)
            loss = sum(trained[k].losses) / len(trained[k].losses)
            late, lost = participation.is_late(config, k, t), participation.drops_out(config, k, t)
            if late and refusal(arrived[k].state, examples, spec) is None:
                report.memory[f"{LATE}{k}"] = spec.row(arrived[k].state)
            if late or lost:
                del arrived[k]
                note = "late: its update arrives in the next round" if late else "dropped out: nothing arrives"
                report.add(t, client.name, "train", "present", 0.0, note=note)
            report.add(t, client.name, "train", "loss", loss, uplink_bytes=uplink(k), seconds=trained[k].seconds)
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
    world: World, config: RunConfig, learned: list[State], answers: list[State], present: list[int], t: int
) -> tuple[Tensor, dict[int, dict]]:
    """Each client's lam (N,), 0 for those not present, and for adaptive mixing the held-out losses behind it,
    {client: {candidate: loss}}."""
    lam = torch.zeros(len(learned), dtype=torch.float64)
    rule = STRATEGIES[config.method].mixing(config)
    if rule == "scheduled":
        rule = mixing.scheduled(config, t)
    if rule != "adaptive":
        lam[present] = float(rule)
        return lam, {}

    def held_out_loss(place: int, lam: float) -> float:
        k = present[place]
        state = _retracted(world, config, _taken_in(world, config, learned[k], answers[k], lam, t))
        return evaluate.loss(world.model, state, world.clients[k].held_out, config.batch_size)

    lam[present], losses = mixing.adaptive(config.mixing_grid, len(present), held_out_loss)
    grid = sorted(set(config.mixing_grid))
    return lam, {k: dict(zip(grid, row.tolist(), strict=True)) for k, row in zip(present, losses, strict=True)}


def _retracted(world: World, config: RunConfig, state: State) -> State:
    return {**state, **{name: retract(state[name], config.retraction) for name in world.model.adapter.rotated}}


def evaluate_all(world: World, config: RunConfig, X: Tensor | None, t: int, *, progress: bool = False) -> list[dict]:
    """Every client's scores on its own test, and on the union where `union_size` asks for it.

    X None is the untrained backbone, without any intervention (with the untrained head, where the task needs one).
    Labelled held-out items are scored too: ReFT picks the epoch, and we the round, by them.
    """
    report = Report(torch.eye(1))
    begin = common_start(world, config)
    head = {name: begin[name] for name in world.model.head_names}
    own_shares = STRATEGIES[config.method].test_share is not alike
    on_union: dict[tuple, list] = {}  # clients that share one state share its result
    for k, client in enumerate(tqdm(world.clients, desc="testing", unit="client", disable=not progress, leave=False)):
        row = None if X is None else X[k if len(X) > 1 else 0]
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
    begin = start(world, config)
    saved = store.resume(begin) if resume else store.afresh(begin)
    X, memory, done = saved.X, saved.memory, saved.manifest["round"]
    rows, history_M = saved.history.to_dict("records"), list(saved.M)
    total = sum(p.steps for p in participants(world, config)) * (config.rounds - done)
    with tqdm(desc=config.run_id, total=total, unit="step", disable=not progress, leave=False) as bar:
        if not rows:
            rows = evaluate_all(world, config, None, 0, progress=progress)
            store.save(0, X, history_M, rows, memory)
        for t in range(done + 1, config.rounds + 1):
            X, report = federated_round(world, config, X, t, bar.update, memory=memory)
            memory = report.memory
            rows, history_M = rows + report.rows, [*history_M, report.M]
            if t == config.rounds or (config.eval_every and t % config.eval_every == 0):
                rows = rows + evaluate_all(world, config, X, t, progress=progress)
            store.save(t, X, history_M, rows, memory)
    return store.run(X, history_M, rows, memory)


def _bytes(tensors: State) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())
