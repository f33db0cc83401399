"""FedIT: the mean of A and of B, each by itself; that is not the mean of what the clients add."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import small
from tests.methods.test_branches import lora_adds, reft_adds

LORA = {"intervention": "lora", "retraction": "raw"}
WEIGHTS = torch.tensor([8, 5, 2, 8], dtype=torch.float64) / 23


def test_A_and_B_are_averaged_apart_by_example_counts(uneven, learned):
    config = small(method="fedit", **LORA)
    federation = uneven(config)
    X = start(federation, config)
    sent = learned(federation, config, X)
    found, report = federated_round(federation, config, X, 1)
    assert torch.equal(found, found[:1].expand(4, -1))
    torch.testing.assert_close(found[0].double(), WEIGHTS @ sent.double(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(report.M.double(), WEIGHTS.expand(4, -1))


def test_fedit_is_fedavg_over_lora_to_the_bit():
    one, other = (run(small(method=method, **LORA), progress=False) for method in ("fedit", "fedavg"))
    assert torch.equal(one.states, other.states) and one.accuracy().tolist() == other.accuracy().tolist()


@pytest.mark.parametrize(("method", "intervention"), [("fedit", "lora"), ("fedavg", "loreft")])
def test_the_mean_of_the_tensors_is_not_the_mean_of_what_they_add(uneven, learned, method, intervention):
    config = small(method=method, intervention=intervention, retraction="raw", lr=0.1)
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    sent, (found, _) = learned(federation, config, X), federated_round(federation, config, X, 1)
    h = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))

    def added(row):
        state = spec.named(row)
        if intervention == "lora":
            return lora_adds(h, {"A": state["q_proj.A"][0], "B": state["q_proj.B"][0]}, scale=8.0)
        return reft_adds(h, {name: tensor[0] for name, tensor in state.items()})

    wanted = sum(p * added(row) for p, row in zip(WEIGHTS, sent, strict=True))
    assert float((added(found[0]) - wanted).norm() / wanted.norm()) > 0.01
