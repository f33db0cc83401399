"""The same server."""

from fedreft_lib.flower.deployment import server_app

app = server_app()
