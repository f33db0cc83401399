"""Additions keep the input of a linear module itself: the same bits in gradients, and no float32 copy."""

import weakref

import pytest
import torch

from fedreft_lib.methods.lora import LoRA
from fedreft_lib.model.fast.recast import cast_again

D, R = 24, 3


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def added(x, phi, again):
    cast = x.to(torch.float32)
    with cast_again(x, cast) if again else cast_again(cast, cast):
        return LoRA(2.0).delta(cast, phi)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["dense", "turned", "part", "repeated"])
def test_gradients_have_the_bits_of_a_kept_copy(dtype, layout):
    x = {
        "dense": numbers(1, 7, D),
        "turned": numbers(1, D, 7).mT,
        "part": numbers(1, 9, 2 * D)[:, 1:8, D:],
        "repeated": numbers(1, 1, D).expand(1, 7, D),
    }[layout].to(dtype)
    found = []
    for again in (True, False):
        leaves = [x.clone(memory_format=torch.preserve_format), numbers(R, D, seed=1), numbers(5, R, seed=2)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        loss = (added(leaves[0], {"A": leaves[1], "B": leaves[2]}, again) * numbers(1, 7, 5, seed=3)).sum()
        found.append(torch.autograd.grad(loss, leaves))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_no_copy_is_kept_and_a_changed_input_is_refused():
    x, phi = numbers(1, 7, D).bfloat16(), {"A": numbers(R, D).requires_grad_(), "B": numbers(5, R).requires_grad_()}
    cast = x.to(torch.float32)
    memory = weakref.ref(cast.untyped_storage())
    with cast_again(x, cast):
        loss = LoRA(2.0).delta(cast, phi).sum()
    del cast
    assert memory() is None
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
