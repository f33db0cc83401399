"""Between the process that Flower starts for a message and the one that keeps the model.

Flower 1.41 starts a process for every message to a node of a deployment. So that this need not load torch and a
backbone each time, it hands the message to `node`, which runs as long as its host takes part, and passes on what that
answers. It needs no more than this file and flwr. Both are processes of one host and of one user: a socket in a folder
that is closed to others. Nothing pickled goes through it: JSON, and arrays in the bytes that Flower has them in.
"""

import contextlib
import json
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp

from . import ARRAYS, HIDDEN, MESSAGES, TOLD

Answers = Callable[[str, RecordDict, Context], RecordDict]  # to a message of a kind


def app_of(answers: Answers) -> ClientApp:
    """A ClientApp that gives these answers; what is to be summed behind masks is masked here."""
    app = ClientApp()

    def plainly(message: Message, context: Context) -> Message:
        return Message(answers(message.metadata.message_type, message.content, context), reply_to=message)

    def masked(message: Message, context: Context) -> Message:
        if message.metadata.message_type != "train":  # "train.default" comes here as well, and would not be masked
            raise ValueError("an update is sent behind masks or not at all")
        asked = RecordDict({ARRAYS: ArrayRecord(), TOLD: message.content["fitins.config"]})
        found = answers(HIDDEN, asked, context)
        # What the masks are put on, in the records of Flower's older interface, which SecAgg+ reads.
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


def client_app(otherwise: Callable[[Path], Answers]) -> ClientApp:
    """What the app that is sent to the hosts consists of. "link" in the config of a node is where its host listens; a
    simulation by `flwr run` has no hosts, and `otherwise` answers there, given the folder for states."""

    def answers(kind: str, content: RecordDict, context: Context) -> RecordDict:
        if address := context.node_config.get("link"):
            return asked(str(address), kind, content)
        return otherwise(Path(str(context.run_config["folder"])) / "nodes")(kind, content, context)

    return app_of(answers)


def asked(address: str, kind: str, content: RecordDict) -> RecordDict:
    """What the host that listens at an address answers. Raises RuntimeError with what it says where it fails."""
    with Client(address) as connection:
        _send(connection, kind, content)
        kind, answer = _received(connection)
    if kind == "error":
        raise RuntimeError(answer[TOLD]["json"])
    return answer


def answer_one(listener: Listener, answer: Callable[[str, RecordDict], RecordDict]) -> None:
    """Wait for a message, and answer it; what `answer` raises is the answer, too."""
    with listener.accept() as connection:
        try:
            asked = _received(connection)
        except (EOFError, OSError, LookupError, TypeError, ValueError):
            return  # it was nobody of ours, or has gone
        try:
            kind, content = "answer", answer(*asked)
        except Exception as error:  # of whatever kind: the host goes on
            said = f"{type(error).__name__}: {error}"
            kind, content = "error", RecordDict({ARRAYS: ArrayRecord(), TOLD: ConfigRecord({"json": said})})
        with contextlib.suppress(OSError):  # who asked may have gone
            _send(connection, kind, content)


def _send(connection: Connection, kind: str, content: RecordDict) -> None:
    arrays = dict(content[ARRAYS])
    form = {name: [array.dtype, array.shape, array.stype] for name, array in arrays.items()}
    connection.send_bytes(json.dumps({"kind": kind, "told": content[TOLD]["json"], "arrays": form}).encode())
    for array in arrays.values():
        connection.send_bytes(array.data)


def _received(connection: Connection) -> tuple[str, RecordDict]:
    head = json.loads(connection.recv_bytes())
    arrays = {}
    for name, (dtype, shape, stype) in head["arrays"].items():
        arrays[name] = Array(dtype=dtype, shape=tuple(shape), stype=stype, data=connection.recv_bytes())
    return head["kind"], RecordDict({ARRAYS: ArrayRecord(arrays), TOLD: ConfigRecord({"json": head["told"]})})
