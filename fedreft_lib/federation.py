"""The round and the run.

A round is a pure function: `federated_round(world, config, X, t) -> (X', report)`, X (N, P) the clients' states.
What is random in it depends on (seed, t, client) alone, so a run can be stopped after any round and continued to the
same bits, and runs that begin alike share the work of their beginning.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import evaluate, mixing, runs
from .admission import refusal
from .aggregation import mixing_matrix, take_in
from .config import RunConfig
from .errors import FedReFTError
from .interventions import State
from .local import Trained, steps_per_round, train
from .randomness import derive
from .rotation import orthonormality_error, retract
from .runs import Run
from .strategies import STRATEGIES
from .worlds import Answers, Options, World, open_world, partition_of


@dataclass
class Report:
    """What happened in a round: rows for the history, and who listened to whom."""

    M: Tensor  # (N, N)
    rows: list[dict] = field(default_factory=list)

    def add(self, round: int, client: str, split: str, metric: str, value: float, **more: float | str) -> None:
        self.rows.append({"round": round, "client": client, "split": split, "metric": metric, "value": value, **more})


@dataclass(frozen=True)
class Participant:
    """Who trains: a client, or the centralised learner with everybody's data."""

    name: str
    train: Answers
    held_out: Answers
    steps: int


def participants(world: World, config: RunConfig) -> list[Participant]:
    """The clients; for a strategy that pools data, one learner that takes as many steps as they all together."""
    each = [Participant(c.name, c.train, c.held_out, steps_per_round(len(c.train), config)) for c in world.clients]
    if not STRATEGIES[config.method].pools_data:
        return each
    return [Participant("all", Answers.join([p.train for p in each]), each[0].held_out, sum(p.steps for p in each))]


def start(world: World, config: RunConfig) -> Tensor:
    """X (N, P) before the first round: everybody starts from one state, or averages would mix different gauges."""
    row = world.model.spec.row(world.model.start(config.init, derive(config.seed, "start")))
    return row.repeat(len(participants(world, config)), 1)


def federated_round(
    world: World, config: RunConfig, X: Tensor, t: int, on_step: Callable[[], object] = lambda: None
) -> tuple[Tensor, Report]:
    """Round t (from 1): local training, admission, aggregation, mixing, retraction. X (N, P) -> X' (N, P)."""
    spec, strategy, clients = world.model.spec, STRATEGIES[config.method], participants(world, config)
    report = Report(torch.eye(len(clients)))
    learned, weights = X.clone(), torch.zeros(len(clients))
    reasons = []
    for k, client in enumerate(clients):
        trained = _trained(world, config, X[k], client, t, on_step)
        reason = refusal(trained.state, len(client.train), spec)
        if reason is None:
            learned[k], weights[k] = spec.row(trained.state), len(client.train)
        else:
            reasons.append(f"{client.name} {reason}")
        sent = _bytes(trained.state) if strategy.aggregate else 0
        loss = sum(trained.losses) / len(trained.losses)
        report.add(t, client.name, "train", "loss", loss, uplink_bytes=sent, seconds=trained.seconds)
        report.add(t, client.name, "train", "admitted", float(reason is None), note=reason or "")

    lam = torch.zeros(len(clients), dtype=torch.float64)
    mixed = learned
    if strategy.aggregate:
        if int((weights > 0).sum()) < 2:
            raise FedReFTError(
                f"round {t} has fewer than two admitted updates ({'; '.join(reasons)}): the run stops, "
                "and its last checkpoint stays for another try"
            )
        aggregate = strategy.aggregate(learned, weights, config)
        received = [spec.named(row) for row in aggregate.aggregate]  # one message for each client
        inbox = torch.stack([spec.row(message) for message in received])
        lam, losses = _lam(world, config, learned, inbox, t)
        mixed = take_in(learned, inbox, lam)
        report.M = mixing_matrix(aggregate.A, lam)
        for k, client in enumerate(clients):
            residual = float(aggregate.residual[k])
            report.add(t, client.name, "server", "residual", residual, downlink_bytes=_bytes(received[k]))
            report.add(t, client.name, "held_out", "lam", float(lam[k]))
            for candidate, loss in losses.get(k, {}).items():
                report.add(t, client.name, "held_out", f"loss at lam {candidate:g}", loss)
    for k, client in enumerate(clients):
        if world.model.intervention.orthonormal:
            error = orthonormality_error(spec.named(mixed[k])["R"])
            report.add(t, client.name, "state", "orthonormality_error_before_retraction", error)
    after = torch.stack([_retracted(world, config, row) for row in mixed])
    for k, client in enumerate(clients):
        if world.model.intervention.orthonormal:
            report.add(t, client.name, "state", "orthonormality_error", orthonormality_error(spec.named(after[k])["R"]))
    return after, report


def _trained(world: World, config: RunConfig, row: Tensor, client: Participant, t: int, on_step) -> Trained:
    """Local training of one client; the first round's is remembered, since every method begins with it."""

    def compute() -> Trained:
        seed = derive(config.seed, "batches", t, client.name)
        return train(
            world.model,
            world.model.spec.named(row),
            client.train,
            config,
            steps=client.steps,
            seed=seed,
            on_step=on_step,
        )

    if t > 1:
        return compute()
    training = ("lr", "schedule", "warmup", "weight_decay", "decayed", "clip", "batch_size", "seed")
    key = ("train", client.name, client.steps, _digest(row), *(getattr(config, name) for name in training))
    return _remembered(world, key, compute)


def _lam(world: World, config: RunConfig, learned: Tensor, inbox: Tensor, t: int) -> tuple[Tensor, dict]:
    """Each client's lam (N,), and for adaptive mixing the held-out losses behind it, {client: {candidate: loss}}."""
    rule = STRATEGIES[config.method].mixing(config)
    if rule == "scheduled":
        rule = mixing.scheduled(config, t)
    if rule != "adaptive":
        return torch.full((len(learned),), float(rule), dtype=torch.float64), {}

    def held_out_loss(k: int, lam: float) -> float:
        row = _retracted(world, config, take_in(learned[k : k + 1], inbox[k : k + 1], lam)[0])
        return evaluate.loss(world.model, world.model.spec.named(row), world.clients[k].held_out, config.batch_size)

    lam, losses = mixing.adaptive(config.mixing_grid, len(learned), held_out_loss)
    grid = sorted(set(config.mixing_grid))
    return lam, {k: dict(zip(grid, row.tolist(), strict=True)) for k, row in enumerate(losses)}


def _retracted(world: World, config: RunConfig, row: Tensor) -> Tensor:
    if not world.model.intervention.orthonormal:
        return row
    state = world.model.spec.named(row)
    return world.model.spec.row({**state, "R": retract(state["R"], config.retraction)})


def evaluate_all(world: World, config: RunConfig, X: Tensor | None, t: int, *, progress: bool = False) -> list[dict]:
    """Accuracy of every client on its own test, and on the union where `union_size` asks for it.

    X None is the untrained backbone, without any intervention. Accuracies are in percent.
    """
    report = Report(torch.eye(1))
    on_union: dict[str, float] = {}  # clients that share one state share its result
    for k, client in enumerate(tqdm(world.clients, desc="testing", unit="client", disable=not progress, leave=False)):
        row = None if X is None else X[k if len(X) > 1 else 0]
        ask = functools.partial(_accuracy, world, config, row)
        # The untrained backbone is asked once for all runs; options that are read together round together.
        key = ("untrained", client.name, config.batch_size)
        value = ask(client.test) if row is not None else _remembered(world, key, lambda c=client, ask=ask: ask(c.test))
        tasks = sorted(set(client.test.tasks))
        report.add(t, client.name, "test", "accuracy", value, task=tasks[0] if len(tasks) == 1 else "mixed")
        if world.union and row is not None:
            digest = _digest(row)
            if digest not in on_union:
                on_union[digest] = ask(world.union)
            report.add(t, client.name, "union", "accuracy", on_union[digest], task="union")
    return report.rows


def _accuracy(world: World, config: RunConfig, row: Tensor | None, questions: Options) -> float:
    """Percent of right answers of the model steered by one row of X; by nothing where it is None."""
    state = None if row is None else world.model.spec.named(row)
    return 100 * float(evaluate.correct(world.model, state, questions, config).double().mean())


def run(config: RunConfig, folder: str | Path | None = None, resume: bool = True, *, progress: bool = True) -> Run:
    """Run a federation, or continue it.

    folder: where config, history, manifest and checkpoints go; None keeps them in memory only. With resume=True a
    run in the folder continues after its last whole round and a finished one is returned as it is; a run of another
    config in the folder is refused (ConfigError), one of other code or data is started again.
    """
    store = runs.Store(config, folder)
    if resume and (finished := store.finished(lambda: partition_of(config))):
        return finished
    world = open_world(config)
    store.describe(world)
    X, rows, history_M, done = store.resume(start(world, config)) if resume else (start(world, config), [], [], 0)
    total = sum(p.steps for p in participants(world, config)) * (config.rounds - done)
    with tqdm(desc=config.run_id, total=total, unit="step", disable=not progress, leave=False) as bar:
        if done == 0:
            rows = evaluate_all(world, config, None, 0, progress=progress)
            store.save(0, X, history_M, rows)
        for t in range(done + 1, config.rounds + 1):
            X, report = federated_round(world, config, X, t, bar.update)
            rows, history_M = rows + report.rows, [*history_M, report.M]
            if t == config.rounds or (config.eval_every and t % config.eval_every == 0):
                rows = rows + evaluate_all(world, config, X, t, progress=progress)
            store.save(t, X, history_M, rows)
    return store.run(X, history_M, rows)


def _bytes(tensors: State) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _digest(row: Tensor) -> str:
    return hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest()


def _remembered(world: World, key: tuple, compute: Callable):
    if key not in world.memo:
        world.memo[key] = compute()
    return world.memo[key]
