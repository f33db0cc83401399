"""Flower's ClientApp: one client, which keeps its state on its own disk.

    query.hello      who it is: client number, name, examples, steps, classes, outputs of its head, its longest text,
                     what of its texts is cut, a hash of its data, and which backbone it has
    query.tell       what its method needs of its data before the first round
    train.begin      it is given the state that all begin with, where that is made of what they told
    train.learn      a round's local training; it sends its update, the tensors that its method sends and no others
    train.hidden     the same for a sum: this is what masks are put on, on the way to Flower (see link)
    train.take_in    what it is told, and how much of that it takes in
    evaluate.scores  its scores on its own test

Every message brings the config of the run, so a node has no settings but its client's number, the folder for its states
and where its data is. All but the first bring what it said of its data and its backbone, and where these have changed
since, it answers that, and nothing is computed. In a deployment all of this is done by a host's `node`, to which
Flower's process for a message passes it on.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from flwr.app import Context, RecordDict

from ..config import RunConfig
from ..data.partition import classes_of
from ..errors import ConfigError, FedReFTError
from ..federation import client, evaluation, server
from ..federation.admission import refusal
from ..federation.assembly import Federation, assemble
from ..federation.local_clients import LocalClients
from ..files import hash_of
from ..methods import METHODS
from . import HIDDEN, records, relay
from .client_files import NodeFiles
from .levels import Levels


class Node:
    """A client of a run, for one message.

    home: where its states are. opened: its federation, by the run's config and the outputs of the run's head.
    """

    def __init__(self, home: Path, k: int, told: dict, opened: Callable[[RunConfig, int], Federation]):
        if "threads" in told:
            torch.set_num_threads(told["threads"])
        self.config = RunConfig(**told["config"])
        self.k, self.t, self.told = k, told.get("round", 0), told
        self.levels = Levels(*told["levels"]) if "levels" in told else None  # where only sums are to be known
        if not 0 <= k < self.config.clients:
            raise ConfigError(f"this node is client {k + 1} of a federation of {self.config.clients}")
        self.clients = LocalClients(opened(self.config, told.get("outputs", 0)), self.config)
        self.federation, self.model = self.clients.federation, self.clients.model
        self.has = {"data": self.federation.questions[k].fingerprint, "backbone": self.model.backbone.identity}
        if changed := [what for what, said in told.get("has", {}).items() if said != self.has[what]]:
            raise FedReFTError(f"the {' and '.join(changed)} of client {k + 1} changed since the run began")
        # States that were learned on other data or another backbone are in another folder.
        run = hashlib.sha256(f"{self.config.model_dump_json()} {sorted(self.has.items())}".encode()).hexdigest()[:16]
        self.files = NodeFiles(home / run / f"client{k + 1}")

    def on_grid(self, row: torch.Tensor) -> torch.Tensor:
        """What it sends of a state (P,), as numbers that can be summed behind masks, float64."""
        state, sent = self.model.spec.named(row), client.sent_spec(self.model.layout, self.config)
        return self.levels.rounded(sent.row({name: state[name] for name, _ in sent.shapes}))

    def row(self, before: int, missed: dict) -> torch.Tensor:
        """The state (P,) that the server means, from before round `before`: the newest where it knows of none. Raises
        FedReFTError where there is no such state."""
        spec, names = self.model.spec, client.sent_names(self.model.layout, self.config)
        for row in self._rows(before):
            state = {**spec.named(row), **missed}
            if self.told["expects"] in (None, hash_of({name: state[name] for name in names})):
                return spec.row(state)
        raise FedReFTError(f"client {self.k + 1} has no state of before round {before} as the server holds it")

    def _rows(self, before: int) -> Iterator[torch.Tensor]:
        """Its states of before a round, the newest first; the last is the seed's."""
        yield from self.files.rows(before)
        yield self.model.spec.row(client.common_start(self.model.layout, self.config))


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


def tell(node: Node, records_: RecordDict) -> RecordDict:
    start = client.common_start(node.model.layout, node.config)
    statistics = METHODS[node.config.method].client_statistics
    return records.packed({}, statistics(node.model, node.config, start, node.federation.clients[node.k]))


def begin(node: Node, records_: RecordDict) -> RecordDict:
    node.files.keep_start(node.model.spec.row(records.tensors(records_)))
    return records.packed({})


def learn(node: Node, records_: RecordDict) -> RecordDict:
    k, t, spec = node.k, node.t, node.model.spec
    before = node.row(t, records.tensors(records_))
    found = node.clients.train({k: spec.named(before)}, {}, t, lambda: None)[k]
    usable = refusal(found.state, 1, spec) is None
    node.files.keep_learned(before, spec.row(found.state) if usable else None)
    told = {"examples": found.update.examples, "fault": found.fault, "loss": found.loss, "seconds": found.seconds}
    return records.packed(told, {} if node.levels else found.update.state)


def hidden(node: Node, records_: RecordDict) -> RecordDict:
    """What was learned, for the masks: this process hands it to the one that puts them on."""
    return records.packed({}, {"x": node.on_grid(node.files.learned(refused=False))})


def take_in(node: Node, records_: RecordDict) -> RecordDict:
    k, t, spec = node.k, node.t, node.model.spec
    row = node.files.learned(node.told["refused"])
    answer = records.tensors(records_) if node.told["answered"] else None
    if node.levels:
        of_others = (answer["sum"] - node.on_grid(row)) / (node.told["sum_of"] - 1)
        answer = client.sent_spec(node.model.layout, node.config).named(of_others.float())
    taken = client.take_answer(node.model, node.config, node.federation.clients[k], t, spec.named(row), answer)
    node.files.keep(t, spec.row(taken.state))
    return records.packed({"lam": taken.lam, "losses": list(taken.losses.items()), "errors": list(taken.errors)})


def scores(node: Node, records_: RecordDict) -> RecordDict:
    newest, X = records.tensors(records_), None
    if not node.told["untrained"]:
        X = node.row(node.t + 1, {})[None]
    memory = {f"{server.FOR_ALL}{name}": tensor for name, tensor in newest.items()}
    rows = evaluation.evaluate_all(node.federation, node.config, X, node.t, memory=memory, who=[node.k])
    return records.packed({"rows": rows})


HANDLERS: dict[str, Callable[[Node, RecordDict], RecordDict]] = {
    "query.hello": hello,
    "query.tell": tell,
    "train.begin": begin,
    "train.learn": learn,
    HIDDEN: hidden,
    "train.take_in": take_in,
    "evaluate.scores": scores,
}


def answer(
    kind: str, content: RecordDict, k: int, home: Path, opened: Callable[[RunConfig, int], Federation]
) -> RecordDict:
    """What client k (from 0) answers to a message; the others as for Node."""
    return HANDLERS[kind](Node(home, k, records.told(content), opened), content)


def in_this_process(home: Path) -> relay.Answers:
    """Of any process that Flower chooses, as in a simulation: the states of all clients are below `home`, and the
    process has a backbone and everybody's data."""

    def opened(config: RunConfig, outputs: int) -> Federation:
        return assemble(config)

    def answers(kind: str, content: RecordDict, context: Context) -> RecordDict:
        return answer(kind, content, int(context.node_config["partition-id"]), home, opened)

    return answers
