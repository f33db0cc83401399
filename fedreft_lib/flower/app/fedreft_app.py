"""The Flower app: what it does is in fedreft_lib, which each host has."""

from fedreft_lib.flower.client_app import client_app
from fedreft_lib.flower.server_app import server_app

client = client_app()
server = server_app()
