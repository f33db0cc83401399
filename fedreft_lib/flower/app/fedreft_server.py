"""The ServerApp: its code is in fedreft_lib, which is installed on the server."""

from fedreft_lib.flower.deployment import server_app

app = server_app()
