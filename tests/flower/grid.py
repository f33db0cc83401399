"""A grid without processes: every message is serialised, handed to the client app, and its reply serialised back."""

import random
import uuid
from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity


class DirectGrid(Grid):
    """Nodes 100, 101, ... for clients 1, 2, ...; they answer in an order that `seed` shuffles.

    configs: each node's own; else it is told which part it has, as in a simulation.
    loses(kind, client): whether a reply never arrives. breaks: whether the node fails over the message. spoils(kind,
    client, content): what it says in place of its reply's content.
    """

    def __init__(self, app: ClientApp, clients: int, seed: int = 0, configs: list[dict] | None = None):
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.app, self.order = app, random.Random(seed)
        self.configs, self.contexts = configs, {}
        self.nodes = {100 + k: k for k in range(clients)}
        self.replies: dict[str, Message] = {}
        self.sent: list[tuple[str, int, Message, Message]] = []  # kind, client, message, reply
        self.loses: Callable[[str, int], bool] = lambda kind, k: False
        self.breaks: Callable[[str, int], bool] = lambda kind, k: False
        self.spoils: Callable[[str, int, RecordDict], RecordDict] = lambda kind, k, content: content

    def set_run(self, run) -> None:
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *arguments, **named):
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return self.order.sample(list(self.nodes), len(self.nodes))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        for message in self.order.sample(messages, len(messages)):
            kind, k = message.metadata.message_type, self.nodes[message.metadata.dst_node_id]
            reply = self._answer(message, kind, k)
            self.sent.append((kind, k, message, reply))
            if not self.loses(kind, k):
                self.replies[message.metadata.message_id] = reply
        return [message.metadata.message_id for message in messages]

    def _answer(self, message: Message, kind: str, k: int) -> Message:
        if self.breaks(kind, k):
            return Message(Error(2, "the node broke"), reply_to=message)
        try:
            reply = self.app(over_the_wire(message), self._context(k))
            reply.content = self.spoils(kind, k, reply.content)
            return over_the_wire(reply)
        except Exception as error:  # as Flower has it
            return Message(Error(2, f"{type(error)}:<{error}>"), reply_to=message)

    def _context(self, k: int) -> Context:
        """What a node keeps between messages."""
        if k not in self.contexts:
            own = self.configs[k] if self.configs else {"partition-id": k}
            self.contexts[k] = Context(run_id=1, node_id=100 + k, node_config=own, state=RecordDict(), run_config={})
        return self.contexts[k]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [self.replies.pop(i) for i in message_ids if i in self.replies]
        return self.order.sample(ready, len(ready))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


def over_the_wire(message: Message) -> Message:
    parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    there = inflate_object_from_contents(message.object_id, parts)
    there.metadata.__dict__["_message_id"] = message.metadata.message_id or uuid.uuid4().hex
    return there
