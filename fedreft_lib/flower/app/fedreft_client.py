"""The ClientApp: it passes messages to its host's `fedreft_lib.flower.host`, and loads neither torch nor a model."""

from fedreft_lib.flower.relay import client_app

app = client_app()
