"""The loss of each token, with nothing kept for the backward pass but the logits.

torch keeps the logarithms of all probabilities, in float32: twice what logits in bfloat16 take, and those are the
widest tensors of a small model. Here they are computed again, some tokens at a time and always in the same memory, by
the same operations, so losses and gradients have the same bits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Tokens whose float32 probabilities over the vocabulary are in memory at once: few, so that they take little beside the
# logits, and are not large enough to go back to the system, which is slow to provide them again.
AT_A_TIME = 16


class TokenLosses(torch.autograd.Function):
    """Cross-entropy (M,), float32, of the first M rows of logits (M or more, V) at the tokens ids (M,)."""

    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor) -> Tensor:
        if len(logits) < len(ids):
            raise IndexError(f"{len(ids)} tokens have only {len(logits)} rows of logits")
        ctx.save_for_backward(logits, ids)
        losses = logits.new_empty(len(ids), dtype=torch.float32)
        for at, logprobs in _logprobs(logits[: len(ids)]):
            torch.neg(logprobs.gather(1, ids[at, None])[:, 0], out=losses[at])
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, weights: Tensor) -> tuple:
        logits, ids = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        gradient[len(ids) :] = 0
        read = logits[: len(ids)]
        of_logprobs, of_logits = _room(read)
        of_logprobs.zero_()
        for at, logprobs in _logprobs(read):
            d, into = of_logprobs[: len(logprobs)], of_logits[: len(logprobs)]
            d.scatter_(1, ids[at, None], -weights[at, None])
            torch.ops.aten._log_softmax_backward_data.out(d, logprobs, 1, torch.float32, out=into)
            d.scatter_(1, ids[at, None], 0)
            gradient[at] = into
        return gradient, None


def _logprobs(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Which tokens, and the logarithms of their probabilities in float32, each where those before it were."""
    x, logprobs = _room(logits)
    for start in range(0, len(logits), AT_A_TIME):
        part = logits[start : start + AT_A_TIME]
        n = len(part)
        yield slice(start, start + n), torch.log_softmax(x[:n].copy_(part), 1, out=logprobs[:n])


def _room(logits: Tensor) -> Tensor:
    """For two float32 numbers of each logit of AT_A_TIME tokens."""
    return logits.new_empty(2, min(AT_A_TIME, len(logits)), logits.shape[1], dtype=torch.float32)
