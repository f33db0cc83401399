"""Mixtures add their members' edits in each row's shares; scale and shift is h * s + b."""

import pytest
import torch

from fedreft_lib.core.interventions import LoReFT
from fedreft_lib.methods.branches import branch
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.methods.mixture import Mixture
from fedreft_lib.methods.scale import Scale
from tests.methods.test_branches import CLOSE, KINDS, RANK, drawn, tokens


def scale_adds(h, phi):
    """(s - 1) h + b for each row of h (n, d), one site, in float64."""
    return torch.stack([phi["s"].double() * x + phi["b"].double() - x for x in h.double()])


each_kind = pytest.mark.parametrize(
    ("kind", "dims", "adds"), [*KINDS, (Scale(), (12,), scale_adds)], ids=["loreft", "lora", "scale"]
)


@each_kind
def test_each_row_has_its_own_shares_of_the_members_edits(kind, dims, adds):
    made = Mixture(kind, 3)
    x, phi = tokens(), drawn(made, *dims)
    shares = torch.rand(len(x), 3, generator=torch.Generator().manual_seed(2))
    parts = [adds(x, branch(phi, name)) for name in ("m1", "m2", "m3")]
    expected = sum(shares[:, i : i + 1].double() * part for i, part in enumerate(parts))
    torch.testing.assert_close(made.delta(x, {**phi, "share": shares}).double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.delta(x, phi).double(), sum(parts) / 3, atol=1e-4, rtol=1e-4)


@each_kind
def test_equal_members_are_one_member_whatever_the_shares(kind, dims, adds):
    made, alone = Mixture(kind, 3), drawn(kind, *dims)
    x, shares = tokens(), torch.softmax(torch.arange(15.0).view(5, 3).sin(), -1)
    phi = {f"m{i}.{name}": tensor for i in (1, 2, 3) for name, tensor in alone.items()}
    torch.testing.assert_close(made.delta(x, {**phi, "share": shares}), kind.delta(x, alone), **CLOSE)


@pytest.mark.parametrize(("kind", "dims"), [(LoReFT, (12,)), (LoRA(1.0), (12, 7)), (Scale(), (12,))], ids=str)
def test_members_begin_apart_and_the_first_as_a_state_of_its_own(kind, dims):
    phi = Mixture(kind, 3).init(2, RANK, *dims, start="random", generator=torch.Generator().manual_seed(3))
    alone = kind.init(2, RANK, *dims, start="random", generator=torch.Generator().manual_seed(3))
    assert {name: tuple(t.shape) for name, t in phi.items()} == Mixture(kind, 3).shapes(2, RANK, *dims)
    assert all(torch.equal(tensor, alone[name]) for name, tensor in branch(phi, "m1").items())
    assert not any(torch.equal(branch(phi, "m1")[name], tensor) for name, tensor in branch(phi, "m3").items())


def test_scale_and_shift_starts_at_the_untrained_backbone():
    made, x = Mixture(Scale(), 2), tokens()
    phi = made.init(1, RANK, 12, start="identity", generator=torch.Generator())
    assert torch.equal(made.edit(x, {name: tensor[0] for name, tensor in phi.items()}), x)
