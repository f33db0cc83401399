"""The same server."""

from fedreft_lib.flower.deployed import server_app

app = server_app()
