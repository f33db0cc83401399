"""The server's side of a round: who takes part, which updates are admitted, what each client receives.

It knows of the clients what `Clients` says, wherever they are. A row of its X (N, P) is what it knows of a client's
state: all of it where the clients live in its own process, else the tensors that are sent, the others as they began.
Nothing here reads those others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.aggregation import Aggregate
from ..core.mixing import mixing_matrix
from ..core.robust import norm_clipped
from ..core.state import Layout, State
from ..data.cuts import Cuts
from ..errors import FedReFTError
from ..methods import METHODS
from ..methods.method import Sent
from ..model.steered import SteeredModel
from ..runs.client_states import ClientStates
from ..runs.listening import Listening
from . import participation
from .admission import Update, refusal, refusals
from .client import ClientResult, ClientUpdate, sent_names, sent_spec

LATE = "late."  # before the place of a client whose update arrives in the next round, in the server's memory
FOR_ALL = "for all."  # before the names of the newest state that the server holds for all, there too


class Clients(Protocol):
    """The clients, by number from 0, as a run and its server meet them, wherever they are."""

    names: Sequence[str]
    examples: Sequence[int]
    steps: Sequence[int]  # of each in a round
    model: SteeredModel
    engine: str
    questions: str  # a hash of who holds which
    longest: int  # tokens of their longest text
    writes: bool  # whether the model writes, in tests
    cut: dict[str, Cuts]  # what of their texts does not fit into max_length

    def begin(self) -> ClientStates:
        """Everybody's state before the first round."""

    def train(
        self, before: dict[int, State], missed: dict[int, State], t: int, on_step: Callable[[], object]
    ) -> dict[int, ClientUpdate | str]:
        """Each one's update of round t, from the state that it has before it, or why there is none.

        missed: what some have not received yet of the one state that the server holds for all; it is in `before`.
        """

    def apply_answers(
        self, states: dict[int, State], answers: dict[int, State | None], refused: set[int], t: int
    ) -> dict[int, ClientResult | str]:
        """Sends each one its answer: its next state, or why that is not known.

        states: what it learned, or, where that was `refused`, had before.
        """

    def evaluate(self, X: ClientStates | None, t: int, memory: State, progress: bool) -> list[dict]:
        """`evaluation.evaluate_all`"""


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


def held_back(memory: State) -> dict[int, Tensor]:
    """The rows of the clients that were late in the round before."""
    return {int(name.removeprefix(LATE)): row for name, row in memory.items() if name.startswith(LATE)}


def held_for_all(memory: State) -> State:
    """The newest of what the server holds for all; nothing where its method, or nobody's absence, asks for that."""
    return {name.removeprefix(FOR_ALL): tensor for name, tensor in memory.items() if name.startswith(FOR_ALL)}


def round_of(
    clients: Clients,
    layout: Layout,
    config: RunConfig,
    X: Tensor,
    who: list[int],
    t: int,
    memory: State,
    on_step: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Report]:
    """The rows (n, P) of those who take part after round t, from their rows before it, and the report.

    Below here n clients are numbered by their places in `who`. memory: what the server kept of the rounds before;
    `report.memory` is what it keeps of this one.
    """
    spec, method = layout.spec, METHODS[config.method]
    report = Report(Listening(tuple(who), torch.eye(len(who))), len(clients.names))
    report.memory = {name: tensor for name, tensor in memory.items() if not name.startswith(LATE)}
    X, missed = _brought_up_to_date(clients, layout, X, who, t, report)
    before, held = [spec.named(row) for row in X], held_back(memory)
    arrived, reasons = _collect_updates(clients, layout, config, before, missed, who, t, held, report, on_step)

    states = {i: before[i] if i in reasons else each.state for i, each in arrived.items()}
    answers: dict[int, State | None] = dict.fromkeys(arrived)
    aggregate = None
    if method.aggregate:
        if (admitted := len(arrived) - len(reasons)) < config.min_clients:
            why = "; ".join(f"{arrived[i].update.client} {reason}" for i, reason in reasons.items())
            raise FedReFTError(
                f"round {t} has {admitted} admitted updates and needs {config.min_clients}"
                f"{f' ({why})' if why else ''}: the run stops, and its last checkpoint stays for another try"
            )
        learned = [states.get(i, each) for i, each in enumerate(before)]
        weights = torch.zeros(len(who))
        for i in arrived.keys() - reasons.keys():
            weights[i] = arrived[i].update.examples
        aggregate, all_answers = _answered(layout, config, before, learned, weights, report.memory)
        answers = {i: all_answers[i] for i in arrived}

    taken = clients.apply_answers(
        {who[i]: states[i] for i in arrived}, {who[i]: answers[i] for i in arrived}, {who[i] for i in reasons}, t
    )
    after: dict[int, ClientResult] = {}
    for i in arrived:
        each = taken[who[i]]
        if isinstance(each, str):
            note = f"it keeps its state, since what it was told did not reach it: {each}"
            report.add(t, clients.names[who[i]], "server", "answered", 0.0, note=note)
        else:
            after[i] = each
    if aggregate:
        lam = torch.zeros(len(who), dtype=torch.float64)
        for i, each in after.items():
            lam[i] = each.lam
        report.listening = Listening(tuple(who), mixing_matrix(aggregate.A, lam))
    _report_answers(report, t, {i: arrived[i].update.client for i in after}, aggregate, answers, after)
    some_miss_it = len(after) < len(clients.names) or participation.some_miss_rounds(config)
    if method.one_for_all and after and (some_miss_it or held_for_all(memory)):
        first = next(iter(after))
        names = {*answers[first], *sent_names(layout, config)}
        report.memory |= {f"{FOR_ALL}{name}": after[first].state[name].clone() for name in sorted(names)}
    return torch.stack([spec.row(after[i].state if i in after else state) for i, state in enumerate(before)]), report


def _brought_up_to_date(
    clients: Clients, layout: Layout, X: Tensor, who: list[int], t: int, report: Report
) -> tuple[Tensor, dict[int, State]]:
    """Where the server holds one state for all, each begins with the newest of it. (n, P) -> (n, P), and what that is,
    for those (by client) that had another."""
    newest, spec = held_for_all(report.memory), layout.spec
    if not newest:
        return X, {}
    rows = torch.stack([spec.row({**spec.named(row), **newest}) for row in X])
    missed = {k: newest for k, row, own in zip(who, rows, X, strict=True) if not torch.equal(row, own)}
    for k in missed:
        report.add(t, clients.names[k], "server", "brought up to date", 1.0, downlink_bytes=bytes_of(newest))
    return rows, missed


def _collect_updates(
    clients: Clients,
    layout: Layout,
    config: RunConfig,
    before: list[State],
    missed: dict[int, State],
    who: list[int],
    t: int,
    held: dict[int, Tensor],
    report: Report,
    on_step: Callable[[], object],
) -> tuple[dict[int, ClientUpdate], dict[int, str]]:
    """What reaches the server in round t, by place, and why some of it is refused; who is gone, drops out or is late
    is noted in the report. The late ones' rows of this round go to report.memory."""
    for k, reason in participation.gone(config, t).items():
        if k not in who:
            report.add(t, clients.names[k], "train", "present", 0.0, note=reason)
    training = {k: before[i] for i, k in enumerate(who) if k not in held}
    found = clients.train(training, missed, t, on_step)
    names, spec = sent_names(layout, config), sent_spec(layout, config)
    arrived: dict[int, ClientUpdate] = {}
    for i, k in enumerate(who):
        name = clients.names[k]
        if k in held:
            state = layout.spec.named(held[k])
            update = Update(name, {n: state[n] for n in state if n in names}, clients.examples[k])
            arrived[i] = ClientUpdate(state, update, None, 0.0, 0.0)
            note, uplink = "with its update of the round before", bytes_of(update.state)
            report.add(t, name, "train", "present", 1.0, note=note, uplink_bytes=uplink)
            continue
        each, uplink = found[k], 0
        if isinstance(each, str):
            report.add(t, name, "train", "present", 0.0, note=f"it did not answer: {each}")
            continue
        late, lost = participation.is_late(config, k, t), participation.drops_out(config, k, t)
        if late and (each.fault or refusal(each.update.state, each.update.examples, spec)) is None:
            report.memory[f"{LATE}{k}"] = layout.spec.row(each.state)
        if late or lost:
            note = "late: its update arrives in the next round" if late else "dropped out: nothing arrives"
            report.add(t, name, "train", "present", 0.0, note=note)
        else:
            arrived[i] = each
            uplink = bytes_of({n: tensor for n, tensor in each.update.state.items() if n in names})
        report.add(t, name, "train", "loss", each.loss, uplink_bytes=uplink, seconds=each.seconds)
    return arrived, _refused(arrived, before, layout, config, t, report)


def _refused(
    arrived: dict[int, ClientUpdate], before: list[State], layout: Layout, config: RunConfig, t: int, report: Report
) -> dict[int, str]:
    """By place, why an update is set aside."""
    sent = sent_spec(layout, config)
    reasons = {i: each.fault for i, each in arrived.items() if each.fault}
    rest = [i for i in arrived if i not in reasons]
    origins = [{name: before[i][name] for name, _ in sent.shapes} for i in rest]
    if sent.shapes:
        found = refusals([arrived[i].update for i in rest], origins, sent, config.norm_limit, config.train_size)
        reasons |= {i: reason for i, reason in zip(rest, found, strict=True) if reason}
    for i, each in arrived.items():
        note = reasons.get(i, "")
        report.add(t, each.update.client, "train", "admitted", float(not note), note=note)
    return reasons


def _answered(
    layout: Layout, config: RunConfig, before: list[State], learned: list[State], weights: Tensor, memory: State
) -> tuple[Aggregate, list[State]]:
    """Who listened to whom, and what each client is told. `memory` is changed in place."""
    method = METHODS[config.method]
    apart = layout.head_names if config.head == "averaged" else ()
    spec = layout.spec.part([name for name in sent_names(layout, config) if name not in apart])
    X, x = (torch.stack([spec.row({n: state[n] for n, _ in spec.shapes}) for state in of]) for of in (learned, before))
    if config.norm_clip is not None:
        X = norm_clipped(X, x, weights, config.norm_clip)
    aggregate = method.aggregate(X, weights, config)
    answers = method.answer(Sent(X, x, weights, spec, config, layout.kind, memory), aggregate)
    if apart:
        shares = (weights / weights.sum()).tolist()
        head = {n: sum(p * state[n] for p, state in zip(shares, learned, strict=True)) for n in apart}
        answers = [{**answer, **head} for answer in answers]
    return aggregate, answers


def _report_answers(
    report: Report,
    t: int,
    names: dict[int, str],
    aggregate: Aggregate | None,
    answers: dict[int, State | None],
    after: dict[int, ClientResult],
) -> None:
    """The rows of what was answered and what became of it."""
    for i, name in names.items() if aggregate else ():
        residual = float(aggregate.residual[i])
        report.add(t, name, "server", "residual", residual, downlink_bytes=bytes_of(answers[i]))
        report.add(t, name, "held_out", "lam", after[i].lam)
        for candidate, loss in after[i].losses.items():
            report.add(t, name, "held_out", f"loss at lam {candidate:g}", loss)
    for which, metric in enumerate(("orthonormality_error_before_retraction", "orthonormality_error")):
        for i, name in names.items():
            if after[i].errors:
                report.add(t, name, "state", metric, after[i].errors[which])


def bytes_of(tensors: State) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())
