"""The ServerApp: what it does is in fedreft_lib, which the server has."""

from fedreft_lib.flower.deployment import server_app

app = server_app()
