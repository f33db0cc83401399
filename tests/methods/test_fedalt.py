"""FedALT: beside what a client trains itself it keeps the mean of all others, and a router weighs the two."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import small

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])


@BOTH
def test_the_rest_becomes_the_mean_of_the_others_and_own_and_router_stay_as_learned(uneven, learned, intervention):
    config = small(method="fedalt", intervention=intervention, retraction="raw")
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    for t in (1, 2):
        told = [spec.named(row) for row in learned(federation, config, X, t)]
        X, report = federated_round(federation, config, X, t)
        states = [spec.named(row) for row in X]
        for k in range(4):
            for name, tensor in states[k].items():
                if "rest." in name:  # equal shares, whatever the others' example counts
                    others = [told[j][name.replace("rest.", "own.")].double() for j in range(4) if j != k]
                    torch.testing.assert_close(tensor.double(), sum(others) / 3, atol=1e-6, rtol=1e-6)
                else:
                    assert torch.equal(tensor, told[k][name])
        torch.testing.assert_close(report.M, (torch.ones(4, 4) - torch.eye(4)) / 3)


@BOTH
def test_own_branch_and_router_are_trained_beside_a_frozen_rest(learned, intervention):
    config = small(method="fedalt", intervention=intervention, local_steps=3)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    X, _ = federated_round(
        federation, config, X, 1
    )  # before it, both branches are one and the router has nothing to learn
    begun, trained = spec.named(X[1]), spec.named(learned(federation, config, X, 2)[1])
    for name, tensor in trained.items():
        assert torch.equal(tensor, begun[name]) == ("rest." in name), name


@BOTH
def test_a_client_hears_nothing_of_one_that_was_not_admitted(uneven, learned, set_aside, intervention):
    config = small(method="fedalt", intervention=intervention, retraction="raw")
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    told = [spec.named(row) for row in learned(federation, config, X)]
    set_aside(2)
    states = [spec.named(row) for row in federated_round(federation, config, X, 1)[0]]
    for name in (name for name in states[0] if "rest." in name):
        own = name.replace("rest.", "own.")
        torch.testing.assert_close(states[0][name], (told[1][own] + told[3][own]) / 2)
        torch.testing.assert_close(states[2][name], (told[0][own] + told[1][own] + told[3][own]) / 3)


@BOTH
def test_the_own_branch_alone_is_sent(intervention):
    done = run(small(method="fedalt", intervention=intervention, rounds=1), progress=False)
    sizes = {name: tensor.numel() for name, tensor in done.spec.named(done.states[0]).items()}
    own = sum(size for name, size in sizes.items() if "own." in name)
    router = sum(size for name, size in sizes.items() if name.endswith("route"))
    assert done.history["uplink_bytes"].sum() == done.history["downlink_bytes"].sum() == 4 * own * 4
    assert done.manifest["trainable_params"] == own + router and router == 2 * 64 * (
        4 if intervention == "loreft" else 4
    )
