"""The loss of each token, with nothing kept for the backward pass but the logits.

torch keeps the logarithms of all probabilities, in float32: twice what logits in bfloat16 take, and those are the
widest tensors of a small model. Here they are computed again, some tokens at a time, by the same operations, so losses
and gradients have the same bits.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# Tokens whose float32 probabilities over the vocabulary are in memory at once. Few: the allocator returns large tensors
# to the system, which is slow to provide them again.
AT_A_TIME = 16


class TokenLosses(torch.autograd.Function):
    """Cross-entropy (M,), float32, of logits (M, V) at the tokens ids (M,)."""

    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(logits, ids)
        return torch.cat([_losses(*some) for some in _parts(logits, ids)])

    @staticmethod
    def backward(ctx, weights: Tensor) -> tuple:
        logits, ids = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for into, x, own, weight in _parts(gradient, logits, ids, weights):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                losses = _losses(x, own)
            into.copy_(*torch.autograd.grad(losses, x, weight))
        return gradient, None


def _losses(logits: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(logits.float(), ids, reduction="none")


def _parts(*tensors: Tensor) -> zip:
    return zip(*(tensor.split(AT_A_TIME) for tensor in tensors), strict=True)
