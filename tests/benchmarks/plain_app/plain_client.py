"""Clients without a host's own process; "home" and "client" are in the config of a node."""

from pathlib import Path

from fedreft_lib.flower import link
from fedreft_lib.flower.client_app import answer
from fedreft_lib.worlds import open_world


def answers(kind, content, context):
    k, home = int(context.node_config["client"]) - 1, Path(str(context.node_config["home"]))
    return answer(kind, content, k, home, lambda config, outputs: open_world(config, k, outputs))


app = link.app_of(answers)
