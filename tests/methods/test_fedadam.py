"""FedAdam: the clients' mean change is a gradient, and the server takes Adam's step along it."""

import numpy as np
import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import small

SERVER = {"server_lr": 0.02, "server_beta1": 0.8, "server_beta2": 0.95, "server_tau": 0.003}
BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])


@BOTH
def test_two_rounds_are_the_formula(uneven, learned, intervention):
    config = small(method="fedadam", intervention=intervention, retraction="raw", **SERVER)
    federation = uneven(config)
    X, memory = start(federation, config), {}
    x = X[0].numpy().astype(np.float64)
    m, v = np.zeros_like(x), np.full_like(x, 0.003**2)
    for t in (1, 2):
        sent = learned(federation, config, X, t).numpy().astype(np.float64)
        D = sent.mean(0) - x  # every client counts the same, whatever its examples
        m = 0.8 * m + 0.2 * D
        v = 0.95 * v + 0.05 * D**2
        x = x + 0.02 * m / (np.sqrt(v) + 0.003)
        before = {name: tensor.clone() for name, tensor in memory.items()}
        X, report = federated_round(federation, config, X, t, memory=memory)
        assert all(torch.equal(memory[name], before[name]) for name in before)  # a round is a pure function
        memory = report.memory
        assert torch.equal(X, X[:1].expand(4, -1))
        np.testing.assert_allclose(X[0], x, atol=1e-5)
        np.testing.assert_allclose(memory["m"], m, atol=1e-6)
        np.testing.assert_allclose(memory["v"], v, atol=1e-7)
    assert np.abs(D).max() > 1e-3


def test_a_client_that_was_not_admitted_does_not_count(uneven, learned, set_aside):
    config = small(method="fedadam", retraction="raw", **SERVER)
    federation = uneven(config)
    X = start(federation, config)
    sent = learned(federation, config, X)
    set_aside(2)
    found, _ = federated_round(federation, config, X, 1)
    D = sent[[0, 1, 3]].double().mean(0) - X[0].double()
    step = 0.02 * 0.2 * D / ((0.95 * 0.003**2 + 0.05 * D**2).sqrt() + 0.003)
    torch.testing.assert_close(found.double(), (X[0] + step).expand(4, -1), atol=1e-6, rtol=1e-6)


@BOTH
def test_a_server_that_takes_no_step_stays_at_the_start(intervention):
    config = small(method="fedadam", intervention=intervention, server_lr=0.0, retraction="raw", rounds=2)
    done = run(config, progress=False)
    assert torch.equal(done.states, start(assemble(config), config))


@BOTH
def test_without_moments_and_with_a_huge_tau_it_is_fedavg(intervention):
    fields = {"intervention": intervention, "retraction": "raw", "rounds": 2}
    plain = {"server_beta1": 0.0, "server_beta2": 0.0, "server_lr": 1e4, "server_tau": 1e4}
    adam = run(small(method="fedadam", **plain, **fields), progress=False)
    avg = run(small(method="fedavg", **fields), progress=False)
    torch.testing.assert_close(adam.states, avg.states, atol=1e-5, rtol=1e-5)


def test_R_is_retracted_after_the_servers_step():
    config = small(method="fedadam", server_lr=0.5, server_tau=1e-6, rounds=1)
    federation = assemble(config)
    found, _ = federated_round(federation, config, start(federation, config), 1)
    R = federation.model.spec.named(found[0])["R"]
    torch.testing.assert_close(R @ R.mT, torch.eye(2).expand(len(R), 2, 2), atol=1e-5, rtol=0)
