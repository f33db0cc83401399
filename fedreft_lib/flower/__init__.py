"""The same federation on Flower (https://flower.ai): clients in processes, or on machines, of their own.

    server_app        the server's round, asking over Flower's grid what `LocalClients` asks in its own process
    client_app        the client's side, for the one client that a node is
    records           what is sent, as Flower's records
    client_files      what a node keeps between messages
    secure_sums       Mean-ABM by a server that sees sums alone; `levels` are the numbers that it sums
    simulation        all of it on this machine, from a notebook or a script
    deployment        the ServerApp of a deployment
    host              the program of a host that takes part; `relay` is how Flower's processes reach it
    local_deployment  a whole deployment on this machine
    certificates      keys and certificates for that

Needs flwr: pip install ".[flower]".
"""

import os
import socket
import sys
from pathlib import Path

# Flower and Ray look for newer releases and send usage data; what runs here needs no network but its own.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds between looks for a message
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of what a later version will do
}
ARRAYS, TOLD = "arrays", "told"  # of a message: its tensors, and all else
# what a node is asked; `client_app` says what each is
MESSAGES = ("query.hello", "query.tell", "train.begin", "train.learn", "train.take_in", "evaluate.scores")
HIDDEN = "train.hidden"  # no message has this kind: what is to be masked in this process

for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)


def program(name: str) -> str:
    """A command of flwr's, which lies beside this python."""
    return str(Path(sys.executable).parent / name)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
