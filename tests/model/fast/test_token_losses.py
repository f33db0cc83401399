"""Losses that keep only the logits: the bits of torch's own cross-entropy, and no more memory than they say."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedreft_lib.model.fast.token_losses import AT_A_TIME, TokenLosses

V = 97


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def of(losses_of, logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    losses = losses_of(logits, ids)
    return losses.detach(), torch.autograd.grad(losses, logits, weights)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, AT_A_TIME, 2 * AT_A_TIME + 3])
def test_losses_and_gradients_have_the_bits_of_torchs_own(dtype, tokens, rng):
    logits = (5 * torch.randn(tokens, V, generator=rng)).to(dtype)
    ids, weights = torch.randint(V, (tokens,), generator=rng), torch.randn(tokens, generator=rng)
    found = of(TokenLosses.apply, logits, ids, weights)
    own = of(lambda logits, ids: cross_entropy(logits.float(), ids, reduction="none"), logits, ids, weights)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, own, strict=True))


def test_a_logit_of_minus_infinity_and_a_nan_stay_where_they_are(rng):
    logits, ids = torch.randn(3, V, generator=rng), torch.tensor([0, 1, 2])
    logits[0, 5], logits[1, 7] = float("-inf"), float("nan")
    losses, gradients = of(TokenLosses.apply, logits, ids, torch.ones(3))
    assert losses.isfinite().tolist() == [True, False, True]
    assert gradients.isfinite().all(1).tolist() == [True, False, True] and gradients[0, 5] == 0


def test_rows_without_a_token_have_no_gradient_and_change_none(rng):
    logits, ids, weights = torch.randn(24, V, generator=rng), torch.randint(V, (19,), generator=rng), torch.rand(19)
    losses, gradients = of(TokenLosses.apply, logits, ids, weights)
    own, others = of(TokenLosses.apply, logits[:19], ids, weights)
    assert torch.equal(losses, own) and torch.equal(gradients[:19], others) and not gradients[19:].any()
    with pytest.raises(IndexError):
        TokenLosses.apply(logits, torch.randint(V, (25,)))


def test_a_second_backward_pass_finds_the_same_gradient(rng):
    logits = torch.randn(19, V, generator=rng).requires_grad_()
    losses = TokenLosses.apply(logits, torch.randint(V, (19,), generator=rng))
    first, second = (torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_nothing_is_kept_but_the_logits_themselves(rng):
    kept = []
    logits = torch.randn(40, V, generator=rng).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        TokenLosses.apply(logits, torch.zeros(40, dtype=torch.long))
    assert sum(x.nbytes for x in kept) == logits.nbytes + 40 * 8
