"""The same federation on Flower (https://flower.ai): clients in processes, or on machines, of their own.

    server_app   `server.round_of`, asking over Flower's grid what `federation.InProcess` asks in its own process
    client_app   `client` and `training`, for the one client that a node is
    records      what is sent, as Flower's records
    node_files   what a node keeps between messages
    simulation   all of it on this machine, from a notebook or a script

Needs flwr: pip install ".[flower]".
"""

import os

# Flower and Ray look for newer releases and send usage data; what runs here needs no network but its own.
for variable, value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of what a later version will do
}.items():
    os.environ.setdefault(variable, value)
