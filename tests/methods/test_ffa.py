"""FFA: with one of the two factors frozen, the average is exact: what it adds is the mean of what the clients add."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import small
from tests.methods.test_branches import lora_adds, reft_adds

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
WEIGHTS = torch.tensor([8, 5, 2, 8], dtype=torch.float64) / 23
FROZEN = {"loreft": ("R",), "lora": ("q_proj.A", "v_proj.A")}


@BOTH
def test_the_average_is_exact(uneven, learned, intervention):
    config = small(method="ffa", intervention=intervention, lr=0.1)
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    sent, (found, _) = learned(federation, config, X), federated_round(federation, config, X, 1)
    h = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for place in range(len(next(iter(spec.named(X[0]).values())))):
        for target in ("",) if intervention == "loreft" else ("q_proj.", "v_proj."):

            def added(row, target=target, place=place):
                own = {n.removeprefix(target): t[place] for n, t in spec.named(row).items() if n.startswith(target)}
                return reft_adds(h, own) if intervention == "loreft" else lora_adds(h, own, scale=8.0)

            wanted = sum(p * added(row) for p, row in zip(WEIGHTS, sent, strict=True))
            total += float(wanted.norm())
            for row in found:
                torch.testing.assert_close(added(row), wanted, atol=1e-5, rtol=1e-5)
    assert total > 1


@BOTH
def test_what_is_frozen_stays_and_everything_else_is_trained(intervention):
    config = small(method="ffa", intervention=intervention)
    federation, done = assemble(config), run(config, progress=False)
    begun = done.spec.named(start(federation, config)[0])
    for row in done.states:
        for name, tensor in done.spec.named(row).items():
            same = torch.allclose(tensor, begun[name], atol=1e-5)
            assert same == (name in FROZEN[intervention]), name


@BOTH
def test_only_the_trained_factor_is_counted_and_sent(intervention):
    done = run(small(method="ffa", intervention=intervention, rounds=1), progress=False)
    P = sum(tensor.numel() for n, tensor in done.spec.named(done.states[0]).items() if n not in FROZEN[intervention])
    assert done.manifest["trainable_params"] == P < done.spec.size
    assert done.history["uplink_bytes"].sum() == done.history["downlink_bytes"].sum() == 4 * P * 4


def test_of_an_edit_without_a_map_the_offset_alone_is_trained():
    config = small(method="ffa", intervention="lobireft", init="random", rounds=1)
    done = run(config, progress=False)
    assert done.manifest["trainable_params"] == done.spec.named(done.states[0])["b"].numel()
