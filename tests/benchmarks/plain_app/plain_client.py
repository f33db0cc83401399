"""Clients without a host's own process; "home" and "client" are in the config of a node."""

from pathlib import Path

from fedreft_lib.federation.assembly import assemble
from fedreft_lib.flower import relay
from fedreft_lib.flower.client_app import answer


def answers(kind, content, context):
    k, home = int(context.node_config["client"]) - 1, Path(str(context.node_config["home"]))
    return answer(kind, content, k, home, lambda config, outputs: assemble(config, k, outputs))


app = relay.app_of(answers)
