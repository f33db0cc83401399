"""States of which only some rows live: the others add nothing and get nothing."""

import pytest
import torch

from fedreft_lib.core.interventions import INTERVENTIONS
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.methods.masked import Masked
from tests.methods.test_branches import CLOSE, D_IN, D_OUT, RANK, TOKENS, drawn, tokens

KINDS = [*((kind, (D_IN,)) for kind in INTERVENTIONS.values()), (LoRA(1.7), (D_IN, D_OUT))]
every = pytest.mark.parametrize(("kind", "dims"), KINDS, ids=lambda each: getattr(each, "name", ""))


def rows_of(phi, live):
    """The state of the live rows alone."""
    at = live.bool()
    return {name: t[:, at] if name == "B" else t[at] for name, t in phi.items() if name != "live"}


@every
def test_a_masked_state_adds_what_a_state_of_its_live_rows_adds_and_the_rest_has_no_gradient(kind, dims):
    x, phi = tokens(), drawn(Masked(kind), *dims)
    phi["live"] = torch.tensor([1.0, 0.0, 1.0])
    expected = kind.delta(x, rows_of(phi, phi["live"]))
    leaves = {name: tensor.requires_grad_() for name, tensor in phi.items() if name != "live"}
    found = Masked(kind).delta(x, {**phi, **leaves})
    torch.testing.assert_close(found, expected, **CLOSE)
    found.square().sum().backward()
    for name, tensor in leaves.items():
        dead = tensor.grad[:, 1] if name == "B" else tensor.grad[1]
        assert not dead.any() and tensor.grad.any()
    whole = Masked(kind).as_map(phi)
    torch.testing.assert_close(
        x @ (whole["B"] @ whole["A"]).T + whole.get("c", 0), expected.expand(TOKENS, -1), **CLOSE
    )


@every
def test_with_all_rows_live_it_is_the_kind_itself_to_the_bit(kind, dims):
    x, phi = tokens(), drawn(Masked(kind), *dims)
    assert Masked(kind).shapes(2, RANK, *dims) == {**kind.shapes(2, RANK, *dims), "live": (2, RANK)}
    begun = Masked(kind).init(2, RANK, *dims, start="random", generator=torch.Generator().manual_seed(0))
    own = kind.init(2, RANK, *dims, start="random", generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(begun[name], tensor) for name, tensor in own.items()) and begun["live"].eq(1).all()
    assert torch.equal(Masked(kind).delta(x, {**phi, "live": torch.ones(RANK)}), kind.delta(x, phi))
