"""Flower's ClientApp: one client, which keeps its state on its own disk.

    query.hello       its report: client number, name, examples, steps, classes, outputs of its head, its longest text,
                      how many texts are cut, whether the model generates, hashes of its data and its backbone
    query.statistics  the statistics of its data that its method needs before the first round
    train.begin       receives the state that all begin with, where it depends on these statistics
    train.learn       a round's local training; it sends its update: only the tensors that its method sends
    train.hidden      the update for a secure sum; Flower's process masks it before it is sent (see relay)
    train.take_in     receives its answer and mixes it in; it sends its share lam
    evaluate.scores   its scores on its own test

Every message contains the run's config. So a node's only settings are its client's number, the folder for its states
and the place of its data. All messages except the first contain the data and backbone that it reported. If these have
changed since, it answers with an error and computes nothing. In a deployment the `host` does all this: Flower's process
for a message passes it on (see relay).
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from flwr.app import RecordDict

from ..config import RunConfig
from ..core.state import State
from ..data.partition import classes_of
from ..errors import ConfigError, FedReFTError
from ..federation import client, evaluation, server
from ..federation.admission import refusal
from ..federation.assembly import Federation, assemble
from ..federation.local_clients import LocalClients
from ..files import hash_of
from ..methods import METHODS
from ..model.device import one_thread
from . import HIDDEN, records
from .client_files import NodeFiles
from .levels import Levels


class Node:
    """A client of a run, for one message.

    home: the folder of its states. opened(config, outputs): its federation. Raises ConfigError for a client that is not
    in the federation, FedReFTError where its data or its backbone have changed since the run began.
    """

    def __init__(self, home: Path, k: int, values: dict, opened: Callable[[RunConfig, int], Federation]):
        self.config = RunConfig(**values["config"])
        self.k, self.t, self.values = k, values.get("round", 0), values
        self.levels = Levels(*values["levels"]) if "levels" in values else None  # where the server sees only sums
        if not 0 <= k < self.config.clients:
            raise ConfigError(f"this node is client {k + 1} of a federation of {self.config.clients}")
        self.clients = LocalClients(opened(self.config, values.get("outputs", 0)), self.config)
        self.federation, self.model = self.clients.federation, self.clients.model
        self.has = {"data": self.federation.questions[k].fingerprint, "backbone": self.model.backbone.identity}
        if changed := [what for what, known in values.get("has", {}).items() if known != self.has[what]]:
            raise FedReFTError(f"the {' and '.join(changed)} of client {k + 1} changed since the run began")
        # States from other data or another backbone are in another folder.
        run = hashlib.sha256(f"{self.config.model_dump_json()} {sorted(self.has.items())}".encode()).hexdigest()[:16]
        self.files = NodeFiles(home / run / f"client{k + 1}")

    def on_grid(self, row: torch.Tensor) -> torch.Tensor:
        """The sent tensors of a state (P,), as numbers that secure sums can carry, float64."""
        state, sent = self.model.spec.named(row), client.sent_spec(self.model.layout, self.config)
        return self.levels.rounded(sent.row({name: state[name] for name, _ in sent.shapes}))

    def row(self, before: int, missed: dict) -> torch.Tensor:
        """The state (P,) from before round `before` that the server expects; the newest where it expects none.

        missed: tensors of the newest state for all. Raises FedReFTError where there is no such state.
        """
        spec, names = self.model.spec, client.sent_names(self.model.layout, self.config)
        for row in self._rows(before):
            state = {**spec.named(row), **missed}
            if self.values["expects"] in (None, hash_of({name: state[name] for name in names})):
                return spec.row(state)
        raise FedReFTError(f"client {self.k + 1} has no state of before round {before} as the server holds it")

    def begun(self, start: State) -> State:
        """The state with which this client begins, from the common start."""
        return client.begun(self.model, self.config, self.k, start, self.federation.clients[self.k])

    def _rows(self, before: int) -> Iterator[torch.Tensor]:
        """Its states from before a round, the newest first; the last one is the seed's start."""
        yield from self.files.rows(before)
        start = client.common_start(self.model.layout, self.config)
        yield self.model.spec.row(self.begun(start))


def hello(node: Node, records_: RecordDict) -> RecordDict:
    k = node.k
    return records.packed(
        {
            "classes": classes_of(node.federation.questions[k]),
            "client": k,
            "name": node.clients.names[k],
            "examples": node.clients.examples[k],
            "steps": node.clients.steps[k],
            "longest": node.clients.longest,
            "writes": node.clients.writes,
            "cut": node.federation.clients[k].cut,
            "outputs": node.model.head.outputs if node.model.head else 0,
            "has": node.has,
        }
    )


def statistics(node: Node, records_: RecordDict) -> RecordDict:
    start = client.common_start(node.model.layout, node.config)
    compute = METHODS[node.config.method].client_statistics
    return records.packed({}, compute(node.model, node.config, start, node.federation.clients[node.k]))


def begin(node: Node, records_: RecordDict) -> RecordDict:
    node.files.keep_start(node.model.spec.row(node.begun(records.tensors(records_))))
    return records.packed({})


def learn(node: Node, records_: RecordDict) -> RecordDict:
    k, t, spec = node.k, node.t, node.model.spec
    before = node.row(t, records.tensors(records_))
    found = node.clients.train({k: spec.named(before)}, {}, t, lambda: None)[k]
    usable = refusal(found.state, 1, spec) is None
    node.files.keep_learned(before, spec.row(found.state) if usable else None)
    values = {"examples": found.update.examples, "fault": found.fault, "loss": found.loss, "seconds": found.seconds}
    return records.packed(values, {} if node.levels else found.update.state)


def hidden(node: Node, records_: RecordDict) -> RecordDict:
    """The update for a secure sum: this process passes it to the one that masks it."""
    return records.packed({}, {"x": node.on_grid(node.files.learned(refused=False))})


def take_in(node: Node, records_: RecordDict) -> RecordDict:
    k, t, spec = node.k, node.t, node.model.spec
    row = node.files.learned(node.values["refused"])
    answer = records.tensors(records_) if node.values["answered"] else None
    if node.levels:
        of_others = (answer["sum"] - node.on_grid(row)) / (node.values["sum_of"] - 1)
        answer = client.sent_spec(node.model.layout, node.config).named(of_others.float())
    taken = client.take_answer(node.model, node.config, node.federation.clients[k], t, spec.named(row), answer)
    node.files.keep(t, spec.row(taken.state))
    return records.packed({"lam": taken.lam, "losses": list(taken.losses.items()), "errors": list(taken.errors)})


def scores(node: Node, records_: RecordDict) -> RecordDict:
    newest, X = records.tensors(records_), None
    if not node.values["untrained"]:
        X = node.row(node.t + 1, {})[None]
    memory = {f"{server.FOR_ALL}{name}": tensor for name, tensor in newest.items()}
    rows = evaluation.evaluate_all(node.federation, node.config, X, node.t, memory=memory, who=[node.k])
    return records.packed({"rows": rows})


HANDLERS: dict[str, Callable[[Node, RecordDict], RecordDict]] = {
    "query.hello": hello,
    "query.statistics": statistics,
    "train.begin": begin,
    "train.learn": learn,
    HIDDEN: hidden,
    "train.take_in": take_in,
    "evaluate.scores": scores,
}


def answer(
    kind: str, content: RecordDict, k: int, home: Path, opened: Callable[[RunConfig, int], Federation]
) -> RecordDict:
    """The answer of client k (from 0) to a message. home, opened: see Node."""
    handler, values = HANDLERS[kind], records.values(content)
    with one_thread(values["config"].get("device", "auto")):
        return handler(Node(home, k, values, opened), content)


def of_all(config: RunConfig, outputs: int) -> Federation:
    """For a process that answers for any client: with the data of all, no outputs are missing."""
    return assemble(config)
