"""The server's side of a round: who takes part, which updates are admitted, what each client receives.

The server sees the clients only through `Clients`, wherever they run. A row of its X (N, P) is what it knows of a
client's state: everything where the clients run in its own process, else the sent tensors. The other tensors of the row
then keep their values from the start, and nothing here reads them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from ..runs.round_mixing import RoundMixing
from . import participation
from .admission import Update, refusal, refusals
from .client import ClientResult, ClientUpdate, is_told, sent_names, sent_spec

# Prefixes of the names in the server's memory:
LATE = "late."  # then the number of a client whose update arrives in the next round
FOR_ALL = "for all."  # then the name of a tensor of the newest state that the server holds for all


class Clients(Protocol):
    """The clients, numbered from 0, as a run and its server use them, wherever they run."""

    names: Sequence[str]
    examples: Sequence[int]
    steps: Sequence[int]  # of each client in a round
    model: SteeredModel
    engine: str
    questions: str  # a hash of all clients' items
    longest: int  # tokens of their longest text
    writes: bool  # whether the model generates text in tests
    cut: dict[str, Cuts]  # which of their texts exceed max_length

    def begin(self) -> ClientStates:
        """The states of all clients before the first round."""

    def train(
        self, before: dict[int, State], missed: dict[int, State], t: int, on_step: Callable[[], object]
    ) -> dict[int, ClientUpdate | str]:
        """For each client its update of round t, trained from its state in `before`, or why there is none.

        missed: the tensors of the server's one state for all that a client has not received yet; `before` has them.
        """

    def apply_answers(
        self, states: dict[int, State], answers: dict[int, State | None], refused: set[int], t: int
    ) -> dict[int, ClientResult | str]:
        """Sends each client its answer. Returns its next state, or why that is unknown.

        states: what each learned, or had before the round where its update was `refused`.
        """

    def evaluate(self, X: ClientStates | None, t: int, memory: State, progress: bool) -> list[dict]:
        """See `evaluation.evaluate_all`."""


@dataclass
class Report:
    """The result of a round: rows for the history, the mixing matrix, and the server's memory."""

    round_mixing: RoundMixing
    clients: int
    rows: list[dict] = field(default_factory=list)
    memory: State = field(default_factory=dict)

    @property
    def M(self) -> Tensor:
        """The mixing matrix (N, N) of all clients."""
        return self.round_mixing.among(self.clients)

    def add(
        self, round: int, client: str, split: str, metric: str, value: float | list[float], **more: float | str
    ) -> None:
        self.rows.append({"round": round, "client": client, "split": split, "metric": metric, "value": value, **more})


def late_rows(memory: State) -> dict[int, Tensor]:
    """The rows of the clients that were late in the round before, by client."""
    return {int(name.removeprefix(LATE)): row for name, row in memory.items() if name.startswith(LATE)}


def held_for_all(memory: State) -> State:
    """The newest state that the server holds for all clients; {} where the method has none, or no client misses one."""
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
    """Round t for the clients `who`: their rows (n, P) before it -> their rows after it, and the report.

    From here on, a client's number is its place in `who`. memory: the server's tensors from earlier rounds;
    `report.memory` holds those after this round. Raises FedReFTError where too few updates are admitted.
    """
    spec, method = layout.spec, METHODS[config.method]
    report = Report(RoundMixing(tuple(who), torch.eye(len(who))), len(clients.names))
    report.memory = {name: tensor for name, tensor in memory.items() if not name.startswith(LATE)}
    late, held = late_rows(memory), X
    X, missed = _brought_up_to_date(clients, layout, X, who, t, report)
    before = [spec.named(row) for row in X]
    started = X
    if late:  # such a client keeps the state that it trained from, until its update has arrived
        started = torch.stack([own if k in late else row for k, own, row in zip(who, held, X, strict=True)])
    updates, reasons = _collect_updates(clients, layout, config, before, missed, who, t, late, report, on_step)
    states = {i: before[i] if i in reasons else update.state for i, update in updates.items()}
    answers: dict[int, State | None] = dict.fromkeys(updates)
    aggregate = None
    if method.aggregate:
        _check_enough(updates, reasons, config, t)
        weights = torch.zeros(len(who))
        for i in updates.keys() - reasons.keys():
            weights[i] = updates[i].update.examples
        trained = [states.get(i, state) for i, state in enumerate(before)]
        aggregate, to_all = _aggregated(
            layout, config, X, started, trained, weights, report.memory, who, clients.examples
        )
        answers = {i: to_all[i] for i in updates}

    results = clients.apply_answers(
        {who[i]: states[i] for i in updates}, {who[i]: answers[i] for i in updates}, {who[i] for i in reasons}, t
    )
    after: dict[int, ClientResult] = {}
    for i in updates:
        result = results[who[i]]
        if isinstance(result, str):
            note = f"it keeps its state, since the answer did not reach it: {result}"
            report.add(t, clients.names[who[i]], "server", "answered", 0.0, note=note)
        else:
            after[i] = result
    if aggregate:
        lam = torch.zeros(len(who), dtype=torch.float64)
        for i, result in after.items():
            lam[i] = result.lam
        report.round_mixing = RoundMixing(tuple(who), mixing_matrix(aggregate.A, lam))
    _report_answers(report, t, {i: updates[i].update.client for i in after}, aggregate, answers, after)
    some_miss_it = len(after) < len(clients.names) or participation.some_miss_rounds(config)
    if method.one_for_all and after and (some_miss_it or held_for_all(memory)):
        first = next(iter(after))
        names = {*answers[first], *(name for name in sent_names(layout, config) if not is_told(name))}
        report.memory |= {f"{FOR_ALL}{name}": after[first].state[name].clone() for name in sorted(names)}
    return torch.stack([spec.row(after[i].state if i in after else state) for i, state in enumerate(before)]), report


def _check_enough(updates: dict[int, ClientUpdate], reasons: dict[int, str], config: RunConfig, t: int) -> None:
    if (admitted := len(updates) - len(reasons)) < config.min_clients:
        why = "; ".join(f"{updates[i].update.client} {reason}" for i, reason in reasons.items())
        raise FedReFTError(
            f"round {t} has {admitted} admitted updates and needs {config.min_clients}"
            f"{f' ({why})' if why else ''}: the run stops, and its last checkpoint stays for another try"
        )


def to_train(layout: Layout, X: Tensor, who: list[int], memory: State) -> dict[int, State]:
    """The state from which each client that trains in the next round begins; arguments as in `round_of`."""
    late, rows = late_rows(memory), _with_newest(layout, X, memory)
    return {k: layout.spec.named(row) for k, row in zip(who, rows, strict=True) if k not in late}


def _with_newest(layout: Layout, X: Tensor, memory: State) -> Tensor:
    """Rows (n, P), with the newest state where the server holds one for all."""
    newest, spec = held_for_all(memory), layout.spec
    return torch.stack([spec.row({**spec.named(row), **newest}) for row in X]) if newest else X


def _brought_up_to_date(
    clients: Clients, layout: Layout, X: Tensor, who: list[int], t: int, report: Report
) -> tuple[Tensor, dict[int, State]]:
    """Where the server holds one state for all, every client begins with the newest: rows (n, P) -> (n, P).

    Also returns, by client, the newest state for each client that had an older one.
    """
    newest, rows = held_for_all(report.memory), _with_newest(layout, X, report.memory)
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
    late: dict[int, Tensor],
    report: Report,
    on_step: Callable[[], object],
) -> tuple[dict[int, ClientUpdate], dict[int, str]]:
    """The updates that reach the server in round t, by place, and why some of them are refused.

    late: the rows of the clients that were late in the round before; their updates arrive now. The report notes which
    clients are gone, drop out or are late now, and report.memory keeps the rows of the late ones.
    """
    for k, reason in participation.gone(config, t).items():
        if k not in who:
            report.add(t, clients.names[k], "train", "present", 0.0, note=reason)
    training = {k: before[i] for i, k in enumerate(who) if k not in late}
    found = clients.train(training, missed, t, on_step)
    names, spec = sent_names(layout, config), sent_spec(layout, config)
    updates: dict[int, ClientUpdate] = {}
    for i, k in enumerate(who):
        name = clients.names[k]
        if k in late:
            state = layout.spec.named(late[k])
            update = Update(name, {n: state[n] for n in state if n in names}, clients.examples[k])
            updates[i] = ClientUpdate(state, update, None, 0.0, 0.0)
            note, uplink = "with its update of the round before", bytes_of(update.state)
            report.add(t, name, "train", "present", 1.0, note=note, uplink_bytes=uplink)
            continue
        each, uplink = found[k], 0
        if isinstance(each, str):
            report.add(t, name, "train", "present", 0.0, note=f"it did not answer: {each}")
            continue
        is_late, lost = participation.is_late(config, k, t), participation.drops_out(config, k, t)
        if is_late and (each.fault or refusal(each.update.state, each.update.examples, spec)) is None:
            report.memory[f"{LATE}{k}"] = layout.spec.row(each.state)
        if is_late or lost:
            note = "late: its update arrives in the next round" if is_late else "dropped out: nothing arrives"
            report.add(t, name, "train", "present", 0.0, note=note)
        else:
            updates[i] = each
            uplink = bytes_of({n: tensor for n, tensor in each.update.state.items() if n in names})
        report.add(t, name, "train", "loss", each.loss, uplink_bytes=uplink, seconds=each.seconds)
    return updates, _refused(updates, before, layout, config, t, report)


def _refused(
    updates: dict[int, ClientUpdate], before: list[State], layout: Layout, config: RunConfig, t: int, report: Report
) -> dict[int, str]:
    """Why updates are refused, by place."""
    sent = sent_spec(layout, config)
    reasons = {i: each.fault for i, each in updates.items() if each.fault}
    rest = [i for i in updates if i not in reasons]
    origins = [{name: before[i][name] for name, _ in sent.shapes} for i in rest]
    if sent.shapes:
        told = tuple(filter(is_told, sent.names))
        found = refusals([updates[i].update for i in rest], origins, sent, config.norm_limit, config.train_size, told)
        reasons |= {i: reason for i, reason in zip(rest, found, strict=True) if reason}
    for i, each in updates.items():
        note = reasons.get(i, "")
        report.add(t, each.update.client, "train", "admitted", float(not note), note=note)
    return reasons


def _aggregated(
    layout: Layout,
    config: RunConfig,
    before: Tensor,
    started: Tensor,
    trained: list[State],
    weights: Tensor,
    memory: State,
    who: list[int],
    examples: Sequence[int],
) -> tuple[Aggregate, list[State]]:
    """The aggregate, and the answer to each client.

    before: the clients' rows (n, P); started: those that their updates were trained from. examples: of all clients, by
    number. Changes `memory` in place.
    """
    method, sent = METHODS[config.method], sent_names(layout, config)
    apart = layout.head_names if config.head == "averaged" else ()
    told = {name: torch.stack([state[name] for state in trained]) for name in sent if is_told(name)}
    spec = layout.spec.part([name for name in sent if name not in (*apart, *told)])
    X = torch.stack([spec.row({name: state[name] for name in spec.names}) for state in trained])
    x = layout.spec.columns(spec.names, before)
    if config.norm_clip is not None:
        X = norm_clipped(X, x, weights, config.norm_clip)
    message = Sent(
        X, x, weights, spec, config, layout.kind, memory, tuple(who), told,
        started=layout.spec.columns(spec.names, started), examples=tuple(examples), layout=layout,
    )  # fmt: skip
    weights = method.weigh(message)
    aggregate = method.aggregate(X, weights, config)
    answers = method.answer(replace(message, weights=weights), aggregate)
    if apart:
        shares = (weights / weights.sum()).tolist()
        head = {n: sum(p * state[n] for p, state in zip(shares, trained, strict=True)) for n in apart}
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
    """Adds rows to the history: what each client received, its share lam, and R's errors."""
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
