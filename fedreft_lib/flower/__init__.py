"""The same federation over Flower (https://flower.ai): each client has its own process or machine.

    server_app        the server's side: Flower's grid in place of `LocalClients`
    client_app        the client's side: a node is one client
    records           messages as Flower's records
    client_files      files that a node keeps between messages
    secure_sums       Mean-ABM by a server that sees only sums; `levels` are the numbers that it sums
    simulation        a whole federation on this machine, from a notebook or a script
    deployment        the ServerApp of a deployment
    host              the program of a host that takes part; `relay` connects it with Flower's processes
    local_deployment  a whole deployment on this machine
    certificates      keys and certificates for it

Needs flwr: pip install ".[flower]".
"""

import os
import socket
import sys
from pathlib import Path

from ..memory import NO_THREAD_CACHE

# Flower and Ray look for newer releases and send usage data; a federation needs no network except its own.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds between checks for a message
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise Ray warns of a change in a later version
    **NO_THREAD_CACHE,  # less memory in each of their processes
}
ARRAYS, VALUES = "arrays", "values"  # the parts of a message: its tensors, and all other values
# The kinds of messages to a node; see `client_app`.
MESSAGES = ("query.hello", "query.statistics", "train.begin", "train.learn", "train.take_in", "evaluate.scores")
HIDDEN = "train.hidden"  # no message has this kind: it asks a node for the update that will be masked

for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)


def program(name: str) -> str:
    """The path of a flwr command, in the folder of this python."""
    return str(Path(sys.executable).parent / name)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
