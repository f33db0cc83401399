"""FedSA: the factor that says where to edit is everybody's, the one that says what to do stays with its client."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import small

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
WEIGHTS = torch.tensor([8, 5, 2, 8], dtype=torch.float64) / 23
SHARED = {"loreft": ("R",), "lora": ("q_proj.A", "v_proj.A")}


@BOTH
def test_one_factor_becomes_the_mean_and_the_other_stays_as_it_was_learned(uneven, learned, intervention):
    config = small(method="fedsa", intervention=intervention, retraction="raw")
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    for t in (1, 2):
        sent = learned(federation, config, X, t)
        X, report = federated_round(federation, config, X, t)
        states, told = [spec.named(row) for row in X], [spec.named(row) for row in sent]
        for name in states[0]:
            for k in range(4):
                if name in SHARED[intervention]:
                    mean = sum(p * each[name].double() for p, each in zip(WEIGHTS, told, strict=True))
                    torch.testing.assert_close(states[k][name].double(), mean, atol=1e-6, rtol=1e-6)
                else:
                    assert torch.equal(states[k][name], told[k][name])
        assert not torch.equal(states[0][name], states[1][name])  # the last one is kept: what is kept differs
        torch.testing.assert_close(report.M.double(), WEIGHTS.expand(4, -1))


@BOTH
def test_the_shared_factor_alone_is_sent_and_both_are_trained(intervention):
    done = run(small(method="fedsa", intervention=intervention, rounds=1), progress=False)
    shared = sum(done.spec.named(done.states[0])[name].numel() for name in SHARED[intervention])
    assert done.manifest["trainable_params"] == done.spec.size
    assert done.history["uplink_bytes"].sum() == done.history["downlink_bytes"].sum() == 4 * shared * 4


@BOTH
def test_it_is_fedavg_that_shares_this_factor_alone(intervention):
    fields = {"intervention": intervention, "rounds": 2}
    one = run(small(method="fedsa", **fields), progress=False)
    other = run(small(method="fedavg", sharing="R" if intervention == "loreft" else "A", **fields), progress=False)
    assert torch.equal(one.states, other.states)
