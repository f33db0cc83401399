"""FedProx: FedAvg whose clients are held near where they started the round."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import small

TWO = {"clients": 2, "tasks": ("piqa", "siqa")}
BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])


@BOTH
def test_with_mu_zero_it_is_fedavg_to_the_bit(intervention):
    fields = {"intervention": intervention, "rounds": 2}
    prox = run(small(method="fedprox", proximal_mu=0.0, **fields), progress=False)
    avg = run(small(method="fedavg", **fields), progress=False)
    assert torch.equal(prox.states, avg.states)
    assert prox.accuracy().tolist() == avg.accuracy().tolist()
    held = run(small(method="fedprox", proximal_mu=10.0, **fields), progress=False)
    assert not torch.equal(held.states, avg.states)


@BOTH
def test_the_larger_mu_the_nearer_clients_stay_to_the_start_of_the_round(intervention, learned):
    moved = []
    for mu in (0.0, 1.0, 1e4):
        config = small(method="fedprox", intervention=intervention, proximal_mu=mu, local_steps=12, **TWO)
        federation = assemble(config)
        X = start(federation, config)
        moved.append(float((learned(federation, config, X, 2) - X).norm()))
    assert moved[2] < moved[1] < moved[0] and moved[2] < 0.1 * moved[0]


@BOTH
def test_each_round_is_held_near_its_own_start(intervention, learned):
    config = small(method="fedprox", intervention=intervention, proximal_mu=1e4, local_steps=12, **TWO)
    federation = assemble(config)
    away = start(federation, config) + 0.1
    if intervention == "loreft":
        away, _ = federated_round(
            federation, config.but(method="local", local_steps=1, lr=1e-9), away, 1
        )  # R orthonormal
    moved = learned(federation, config, away, 2) - away
    assert float(moved.norm()) < 0.1 * float((away - start(federation, config)).norm())
