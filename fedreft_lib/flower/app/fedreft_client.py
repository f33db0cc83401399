"""The ClientApp: messages go on to the host's own `fedreft_lib.flower.node`; neither torch nor a model is loaded."""

from fedreft_lib.flower.link import client_app

app = client_app()
