"""What the tests of several methods need."""

import dataclasses

import pytest

from fedreft_lib.federation import admission
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods import METHODS

EXAMPLES = (8, 5, 2, 8)


@pytest.fixture
def uneven():
    """uneven(config): its federation, with clients of 8, 5, 2 and 8 training questions."""

    def opened(config):
        federation = assemble(config)
        clients = [
            dataclasses.replace(client, train=client.train.subset(range(n)))
            for client, n in zip(federation.clients, EXAMPLES, strict=True)
        ]
        return dataclasses.replace(federation, clients=clients, memo={})

    return opened


@pytest.fixture
def learned(monkeypatch):
    """learned(federation, config, X, t): X as it is when every client has trained, before anything is exchanged."""

    def trained(federation, config, X, t=1):
        with monkeypatch.context() as patched:
            alone = dataclasses.replace(METHODS[config.method], aggregate=None)
            patched.setitem(METHODS, config.method, alone)
            return federated_round(federation, config.but(retraction="raw"), X, t)[0]

    return trained


@pytest.fixture
def set_aside(monkeypatch):
    """set_aside(n): from now on, the update of a client that has n examples is not admitted."""

    def refuse(examples):
        monkeypatch.setattr(admission, "refusal", lambda update, n, spec: "is bad" if n == examples else None)

    return refuse
