"""The server: the rounds of `federation.server`, with Flower's nodes as clients.

All-But-Me answers each client differently, so each node gets its own message. The server knows only the sent tensors of
a client's state. It computes their new values itself, and identifies a state by their hash.
"""

import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import DEFAULT_TTL, Message, RecordDict
from flwr.serverapp import Grid

from ..config import RunConfig
from ..core.state import State
from ..data.partition import joint_fingerprint
from ..errors import ConfigError, FedReFTError
from ..federation import client, server
from ..federation.admission import Update
from ..federation.assembly import adapter_of, model_of
from ..federation.client import ClientResult, ClientUpdate
from ..federation.rounds import rest_of, same_backbone
from ..files import hash_of
from ..methods import METHODS
from ..model.adapters import Adapter
from ..model.device import one_thread
from ..model.heads import Head, check_classes
from ..model.identity import may_be_same
from ..model.shared import shared_backbone
from ..runs.client_states import ClientStates
from ..runs.results import Run
from ..runs.store import Store
from . import records

POLL = 0.1  # seconds between checks for replies


class FlowerClients:
    """Clients that are nodes of a grid; see `federation.server.Clients`.

    patience: seconds after which a node without an answer counts as away. ended: for simulations; it is set when no
    more answers will come. Raises ConfigError, DataError or FedReFTError where the config, the clients' data or their
    backbones do not fit, or clients are missing.
    """

    engine = "flower"

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        *,
        patience: float = 600.0,
        ended: threading.Event | None = None,
    ):
        check(config)
        self.grid, self.config, self.patience, self.ended = grid, config, patience, ended or threading.Event()
        self.common: dict[str, Any] = {"config": config.model_dump(mode="json")}
        self.nodes: dict[int, int] = {}  # client -> node
        self.greeted: set[int] = set()
        known = self._all_greeted()
        self.names, self.examples, self.steps = ([each[n] for each in known] for n in ("name", "examples", "steps"))
        self.writes = any(each["writes"] for each in known)
        self.longest = min(max(each["longest"] for each in known), config.max_length + config.max_new_tokens)
        self.cut = {each["name"]: each["cut"] for each in known if each["cut"]}
        self.has = [each["has"] for each in known]
        self.questions = joint_fingerprint(has["data"] for has in self.has)
        backbone = shared_backbone(config.backbone, config.dtype, config.device)
        for name, has in zip(self.names, self.has, strict=True):
            if not may_be_same(has["backbone"], backbone.identity):
                raise FedReFTError(
                    f"{name} has another backbone {config.backbone} ({has['backbone']}) than the server "
                    f"({backbone.identity}): give all of them the same files"
                )
        self.common["outputs"] = outputs = max(each["outputs"] for each in known)
        adapter: Adapter = adapter_of(config, backbone)
        self.model = model_of(config, backbone, adapter, Head(backbone.hidden_size, outputs) if outputs else None)
        self.sent = client.sent_names(self.model.layout, config)
        check_classes({each["name"]: each["classes"] for each in known}, config)

    def begin(self) -> ClientStates:
        """The common start. Raises FedReFTError where it needs every client's statistics and one does not answer."""
        method, start = METHODS[self.config.method], client.common_start(self.model.layout, self.config)
        if method.client_statistics:
            known = self._all("query.statistics", None, self.config.clients - self.config.unseen)
            start = method.initial_state(self.model.layout, self.config, start, known, max(self.steps))
            if any(known):
                self._all("train.begin", start, self.config.clients)
        return ClientStates(self.model.spec.row(start), self.config.clients)

    def _all(self, kind: str, tensors: State | None, clients: int) -> list[State]:
        """The tensors that the first `clients` send in reply. Raises FedReFTError where one does not answer."""
        found = self.ask(kind, {k: self.message_to(k, {}, tensors) for k in range(clients)})
        for k, reply in sorted(found.items()):
            if isinstance(reply, str):
                raise FedReFTError(f"{self.names[k]} is needed for the start and did not answer: {reply}")
        return [records.tensors(found[k]) for k in sorted(found)]

    def train(
        self, before: dict[int, State], missed: dict[int, State], t: int, on_step: Callable[[], object]
    ) -> dict[int, ClientUpdate | str]:
        messages = {
            k: self.message_to(k, {"round": t, "expects": self._name(state)}, missed.get(k))
            for k, state in before.items()
        }

        def trained(k: int) -> None:
            for _ in range(self.steps[k]):
                on_step()

        found = self.ask("train.learn", messages, trained)
        return {k: self._learned(k, before[k], found[k]) for k in before}

    def _learned(self, k: int, before: State, reply: RecordDict | str) -> ClientUpdate | str:
        if isinstance(reply, str):
            return reply
        try:
            values, sent = records.values(reply), records.tensors(reply)
            update = Update(self.names[k], sent, values["examples"] + 0)
            # Tensors that are not sent stay unknown here. Admission refuses a bad update before anything uses it.
            fault = values["fault"] and str(values["fault"])
            return ClientUpdate({**before, **sent}, update, fault, float(values["loss"]), float(values["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            return f"its reply cannot be read ({type(error).__name__}: {error})"

    def apply_answers(
        self, states: dict[int, State], answers: dict[int, State | None], refused: set[int], t: int
    ) -> dict[int, ClientResult | str]:
        messages = {}
        for k in states:
            values = {"round": t, "refused": k in refused, "answered": answers[k] is not None}
            messages[k] = self.message_to(k, values, answers[k])
        found = self.ask("train.take_in", messages)
        return {k: self._taken(states[k], answers[k], found[k], t) for k in states}

    def _taken(self, state: State, answer: State | None, reply: RecordDict | str, t: int) -> ClientResult | str:
        if isinstance(reply, str):
            return reply
        try:
            values = records.values(reply)
            lam, losses = float(values["lam"]), {float(lam): float(loss) for lam, loss in values["losses"]}
            errors = tuple(map(float, values["errors"]))
        except (KeyError, TypeError, ValueError) as error:
            return f"its reply cannot be read ({type(error).__name__}: {error})"
        if not 0 <= lam <= 1:
            return f"it says that it takes in a share of {lam}"
        if len(errors) != (2 if self.model.layout.rotated else 0):
            return f"it says how far {len(errors)} tensors are from orthonormal"
        if answer is not None:
            state = client.apply_answer(self.model.layout, self.config, t, state, answer, lam).state
        return ClientResult(state, lam, losses, errors)

    def evaluate(self, X: ClientStates | None, t: int, memory: State, progress: bool) -> list[dict]:
        newest = server.held_for_all(memory) if X is not None else {}
        messages = {}
        for k in range(self.config.clients):
            expects = "" if X is None else self._name(self.model.spec.named(X[k]))
            messages[k] = self.message_to(k, {"round": t, "untrained": X is None, "expects": expects}, newest)
        found = self.ask("evaluate.scores", messages)
        return [row for k in sorted(found) for row in self._rows(k, t, found[k])]

    def _rows(self, k: int, t: int, reply: RecordDict | str) -> list[dict]:
        """A client's rows for the history; none, with a warning, where its reply has no readable rows."""
        try:
            if isinstance(reply, str):
                raise ValueError(reply)
            return [
                {"round": t, "client": self.names[k], "split": str(row["split"]), "metric": str(row["metric"]),
                 "value": _value(row["value"]), "task": str(row["task"])}
                for row in records.values(reply)["rows"]
            ]  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            warnings.warn(f"there are no scores of {self.names[k]} after round {t}: {error}", stacklevel=3)
            return []

    def _name(self, state: State) -> str:
        """The hash by which a node finds this state among its own."""
        return hash_of({name: state[name] for name in self.sent})

    def message_to(self, k: int, more: dict[str, Any], tensors: State | None = None) -> RecordDict:
        """A message to client k, with the data and backbone that it reported; the client checks that they match."""
        return records.packed({**self.common, "has": self.has[k], **more}, tensors)

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _all_greeted(self) -> list[dict]:
        """The reports of all clients, once all are online. Raises FedReFTError where some do not come."""
        known: dict[int, dict] = {}
        deadline = time.monotonic() + self.patience
        while True:
            known |= self._greet_newcomers(set(self.grid.get_node_ids()))
            missing = [k + 1 for k in range(self.config.clients) if k not in known]
            if not missing:
                return [known[k] for k in range(self.config.clients)]
            if time.monotonic() > deadline:
                raise FedReFTError(f"after {self.patience:g} seconds these clients have not come: {missing}")
            self._wait()

    def _greet_newcomers(self, online: set[int]) -> dict[int, dict]:
        """The reports of new nodes, by client. A node that was away may have a new number."""
        new, found = online - self.greeted, {}
        self.greeted |= new
        for node, reply in self._sent("query.hello", {node: records.packed(self.common) for node in new}).items():
            if isinstance(reply, str):
                warnings.warn(f"a node cannot take part: {reply}", stacklevel=2)
                continue
            values = records.values(reply)
            k = values["client"]
            if self.nodes.get(k) in online:
                warnings.warn(
                    f"another node says that it is client {k + 1}, which is there: it is ignored", stacklevel=2
                )
                continue
            self.nodes[k], found[k] = node, values
        return found

    def ask(
        self, kind: str, what: dict[int, RecordDict], on_reply: Callable[[int], object] = lambda k: None
    ) -> dict[int, RecordDict | str]:
        """By client: its reply, or why there is none."""
        online = set(self.grid.get_node_ids())
        self._greet_newcomers(online)
        away: dict[int, RecordDict | str] = {k: "its node is not there" for k in what if self.nodes[k] not in online}
        number = {node: k for k, node in self.nodes.items()}
        contents = {self.nodes[k]: content for k, content in what.items() if k not in away}
        found = self._sent(kind, contents, lambda node: on_reply(number[node]))
        return away | {number[node]: reply for node, reply in found.items()}

    def _sent(
        self, kind: str, what: dict[int, RecordDict], on_reply: Callable[[int], object] = lambda node: None
    ) -> dict[int, RecordDict | str]:
        """By node: its reply, or why there is none."""
        ttl = min(2 * self.patience, DEFAULT_TTL)
        messages = [Message(content, node, kind, ttl=ttl) for node, content in what.items()]
        self.grid.push_messages(messages)  # it gives the messages their ids
        waiting = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        found: dict[int, RecordDict | str] = {}
        deadline = time.monotonic() + self.patience
        while waiting and time.monotonic() < deadline:
            for reply in self.grid.pull_messages(list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id)
                found[node] = reply.error.reason if reply.has_error() else reply.content
                on_reply(node)
            if waiting:
                self._wait()
        return found | {node: f"no answer within {self.patience:g} seconds" for node in waiting.values()}

    def _wait(self) -> None:
        if self.ended.wait(POLL):
            raise FedReFTError("Flower ended before the run did: its log says why")


def _value(value: Any) -> float | list[float]:
    """The value of a row of `evaluation.evaluate_all`."""
    return list(map(float, value)) if isinstance(value, list) else float(value)


def check(config: RunConfig) -> None:
    """Raises ConfigError for a config that only works with all clients in one process."""
    if METHODS[config.method].pools_data:
        raise ConfigError(f"method={config.method!r} pools everybody's data, and over Flower no data leaves its client")
    if config.setup == "own" and config.union_size:
        raise ConfigError('union_size asks for questions of all clients, and with setup="own" nobody has them together')


def serve(
    grid: Grid, config: RunConfig, folder: str | Path | None, *, resume: bool = True, progress: bool = False, **how
) -> Run:
    """`federation.rounds.run` with Flower's nodes as clients. how: see FlowerClients."""
    store = Store(config, folder)
    with store.locked(), one_thread(config.device):
        clients = FlowerClients(grid, config, **how)
        if resume and (finished := store.finished(lambda: clients.questions, same_backbone)):
            return finished
        return rest_of(clients, config, store, resume, progress)
