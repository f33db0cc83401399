"""The placebo: back towards the start by a share, and nothing from anybody."""

import pytest
import torch

from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import small


@pytest.mark.parametrize("intervention", ["loreft", "lora"])
@pytest.mark.parametrize("lam", [0.0, 0.25, 1.0])
def test_a_client_goes_back_towards_the_start_and_takes_nothing_from_others(learned, intervention, lam):
    config = small(method="placebo", intervention=intervention, mixing=lam, retraction="raw")
    federation = assemble(config)
    X0 = start(federation, config)
    trained = learned(federation, config, X0)
    X, report = federated_round(federation, config, X0, 1)
    torch.testing.assert_close(X, (1 - lam) * trained + lam * X0, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(report.M, (1 - lam) * torch.eye(4))
    later, _ = federated_round(federation, config, X, 2)  # the start of the run, not of the round
    torch.testing.assert_close(later, (1 - lam) * learned(federation, config, X, 2) + lam * X0, atol=1e-6, rtol=1e-6)
