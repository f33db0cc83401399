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

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

ARRAYS, TOLD = "arrays", "told"
# what a node is asked; `client_app` says what each is
KINDS = ("query.hello", "query.tell", "train.begin", "train.learn", "train.take_in", "evaluate.scores")

Handler = Callable[[Message, Context], Message]


def app_of(handlers: dict[str, Handler]) -> ClientApp:
    """A ClientApp that answers each kind of message with its handler."""
    app = ClientApp()
    for kind, handler in handlers.items():
        category, name = kind.split(".")
        getattr(app, category)(name)(handler)
    return app


def client_app() -> ClientApp:
    """What the app that is sent to the hosts consists of. "link" in the config of a node is where its host listens."""

    def passed_on(message: Message, context: Context) -> Message:
        address = str(context.node_config["link"])
        return Message(asked(address, message.metadata.message_type, message.content), reply_to=message)

    return app_of(dict.fromkeys(KINDS, passed_on))


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
