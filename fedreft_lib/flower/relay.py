"""Connects the process that Flower starts for a message with the process that keeps the model.

Flower 1.41 starts a process for every message to a node of a deployment. That process does not load torch and a
backbone each time. It passes the message to the `host`, which runs as long as it takes part, and returns the answer; it
needs only this file and flwr. Both processes belong to one user of one machine. They share a socket in a folder that
others cannot open. Nothing is pickled: messages are JSON, and arrays as Flower's own bytes.
"""

import contextlib
import json
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp

from .. import imported
from . import ARRAYS, HIDDEN, MESSAGES, VALUES

Answers = Callable[[str, RecordDict, Context], RecordDict]  # (kind, content, context) of a message -> the answer


def app_of(answers: Answers) -> ClientApp:
    """A ClientApp that gives these answers. It masks the updates of secure sums."""
    app = ClientApp()

    def plainly(message: Message, context: Context) -> Message:
        return Message(answers(message.metadata.message_type, message.content, context), reply_to=message)

    def masked(message: Message, context: Context) -> Message:
        if message.metadata.message_type != "train":  # "train.default" comes here too, but would not be masked
            raise ValueError("an update is sent behind masks or not at all")
        request = RecordDict({ARRAYS: ArrayRecord(), VALUES: message.content["fitins.config"]})
        found = answers(HIDDEN, request, context)
        # The update to be masked, in the records of Flower's older interface, which SecAgg+ reads.
        content = RecordDict(
            {
                "fitres.parameters": ArrayRecord([array.numpy() for array in found[ARRAYS].values()]),
                "fitres.num_examples": MetricRecord({"num_examples": 1}),
                "fitres.metrics": ConfigRecord(),
                "fitres.status": ConfigRecord({"code": 0, "message": ""}),
            }
        )
        return Message(content, reply_to=message)

    for kind in MESSAGES:
        category, name = kind.split(".")
        getattr(app, category)(name)(plainly)
    app.train(mods=[secaggplus_mod])(masked)
    return app


def in_this_process(home: Path) -> Answers:
    """Answers for a simulation, in any process that Flower chooses: `home` has the states of all clients, and the
    process has a backbone and the data of all clients. It loads them, and torch, when the first message comes."""

    def answers(kind: str, content: RecordDict, context: Context) -> RecordDict:
        here = imported("fedreft_lib.flower.client_app")
        return here.answer(kind, content, int(context.node_config["partition-id"]), home, here.of_all)

    return answers


def client_app() -> ClientApp:
    """The ClientApp that is sent to the hosts.

    "link" in a node's config is the address of its host. A simulation by `flwr run` has no hosts: there the process
    that gets a message answers it.
    """

    def answers(kind: str, content: RecordDict, context: Context) -> RecordDict:
        if address := context.node_config.get("link"):
            return ask(str(address), kind, content)
        return in_this_process(Path(str(context.run_config["folder"])) / "nodes")(kind, content, context)

    return app_of(answers)


def ask(address: str, kind: str, content: RecordDict) -> RecordDict:
    """The answer of the host at an address. Raises RuntimeError with the host's error where it fails."""
    with Client(address) as connection:
        _send(connection, kind, content)
        kind, answer = _received(connection)
    if kind == "error":
        raise RuntimeError(answer[VALUES]["json"])
    return answer


def answer_one(listener: Listener, answer: Callable[[str, RecordDict], RecordDict]) -> None:
    """Wait for a message and answer it. An error of `answer` is sent as the answer."""
    with listener.accept() as connection:
        try:
            request = _received(connection)
        except (EOFError, OSError, LookupError, TypeError, ValueError):
            return  # the sender is not one of our processes, or has ended
        try:
            kind, content = "answer", answer(*request)
        except Exception as error:  # of any kind: the host continues
            reason = f"{type(error).__name__}: {error}"
            kind, content = "error", RecordDict({ARRAYS: ArrayRecord(), VALUES: ConfigRecord({"json": reason})})
        with contextlib.suppress(OSError):  # the sender may have ended
            _send(connection, kind, content)


def _send(connection: Connection, kind: str, content: RecordDict) -> None:
    arrays = dict(content[ARRAYS])
    form = {name: [array.dtype, array.shape, array.stype] for name, array in arrays.items()}
    connection.send_bytes(json.dumps({"kind": kind, "values": content[VALUES]["json"], "arrays": form}).encode())
    for array in arrays.values():
        connection.send_bytes(array.data)


def _received(connection: Connection) -> tuple[str, RecordDict]:
    head = json.loads(connection.recv_bytes())
    arrays = {}
    for name, (dtype, shape, stype) in head["arrays"].items():
        arrays[name] = Array(dtype=dtype, shape=tuple(shape), stype=stype, data=connection.recv_bytes())
    return head["kind"], RecordDict({ARRAYS: ArrayRecord(arrays), VALUES: ConfigRecord({"json": head["values"]})})
