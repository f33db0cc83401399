"""Batches without padding: a batch is one row of tokens, and only attention arranges it as a grid.

Sequences of a batch differ in length. A padded batch computes its padding, too: a third to a half of all tokens in the
benchmarks' questions. All parts except attention work on each token separately. So a *packed* batch, (1, N, d), has the
tokens of all sequences one after another, the longest first. transformers calls the function `attention` in every
block. It puts queries, keys and values into grids (B, T) of sequences of similar length, and takes the results out
again.

On a CPU in bfloat16, the backward pass of torch's fused attention takes several times its forward pass. Up to
`EXPLICIT` tokens the textbook form is faster in both. It rounds each product to bfloat16, also the scores, which the
fused form keeps in float32; by itself it is about half as exact. In SmolLM2-135M other rounding hides that
(log-probabilities and gradients are as far from the float32 model's with either).
"""

import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
import transformers
from torch import Tensor, nn

GIVEN = int(transformers.__version__.split(".")[0]) >= 5  # earlier versions cannot replace BERT's attention
if GIVEN:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

NAME = "fedreft"
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")  # decoders with the same modules, names and `inputs_embeds`
# Models that pass unknown arguments, such as `packing`, to their attention.
PACKABLE = (*LLAMA_LIKE, "bert", "roberta")
EXPLICIT = 256  # tokens; the probabilities kept for the backward pass grow with the square of the length


GRID = 2**13  # the fixed cost of a grid, in cells B T^2 of scores


@dataclass(frozen=True)
class Grid:
    """Some sequences of a packed batch that attend together: tokens first, ..., last - 1 of its row."""

    first: int
    last: int
    index: Tensor  # (n,), flat indices of these tokens into (B, T)
    shape: tuple[int, int]  # B, T
    mask: Tensor  # (B or 1, 1, T or 1, T), added to the scores

    def laid_out(self, x: Tensor) -> Tensor:
        """(1, h, N, n) -> (B, h, T, n), zeros where there is no token."""
        B, T = self.shape
        h, n = x.shape[1], x.shape[3]
        own = x[0].transpose(0, 1)[self.first : self.last]
        return x.new_zeros(B * T, h, n).index_copy(0, self.index, own).view(B, T, h, n).transpose(1, 2)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, T, h, n) -> (tokens, h, n)."""
        return x.flatten(0, 1).index_select(0, self.index)


class Attends(Protocol):
    """How the tokens of a packed batch attend."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, more: dict
    ) -> Tensor:
        """What they read: (1, h, N, n) -> (1, N, h, n); key and value (1, g, N, n), each for h / g heads."""


@dataclass(frozen=True)
class Packing:
    """How the sequences of a packed batch attend: each in a grid with others of similar length."""

    grids: tuple[Grid, ...]
    causal: bool  # each token sees all tokens before it in its sequence: no other mask is needed

    @classmethod
    def of(
        cls, order: Tensor, lengths: list[int], mask: Tensor, causal: bool, owners: list[int] | None = None
    ) -> "Packing":
        """order (B,): the rows in the order of the batch, by decreasing `lengths`. mask: of the rows, as in `Grid`.

        owners: of the rows in that order; lengths then decrease for each owner. No grid has rows of two owners, so each
        owner's rows have the same grids, and the same bits, as in a batch of their own.
        """
        grids, first = [], 0
        for start, stop in _runs(lengths, owners):
            own, T = torch.tensor(lengths[start:stop], device=mask.device), lengths[start]
            index = (torch.arange(T, device=mask.device) < own[:, None]).flatten().nonzero()[:, 0]
            rows = mask[order[start:stop]] if len(mask) > 1 else mask
            rows = rows[:, :, : T if mask.shape[2] > 1 else 1, :T]
            grids.append(Grid(first, first + len(index), index, (stop - start, T), rows))
            first += len(index)
        return cls(tuple(grids), causal)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, more: dict
    ) -> Tensor:
        out = []
        for grid in self.grids:
            Q, K, V = (grid.laid_out(x) for x in (query, key, value))
            if Q.device.type == "cpu" and Q.dtype == torch.bfloat16 and grid.shape[1] <= EXPLICIT:
                scale = Q.shape[-1] ** -0.5 if scaling is None else scaling
                found = Explicit.apply(Q, K, V, grid.mask, scale).transpose(1, 2)
            else:
                mask = None if self.causal else grid.mask  # torch has faster kernels without a mask
                found, _ = sdpa_attention_forward(
                    module, Q, K, V, mask, scaling=scaling, **{**more, "is_causal": self.causal}
                )
            out.append(grid.tokens(found))
        return torch.cat(out).unsqueeze(0)


def _runs(lengths: list[int], owners: list[int] | None) -> list[tuple[int, int]]:
    """`split` of each owner's lengths, which are next to each other; of all lengths where there are no owners."""
    found, start = [], 0
    for _, group in itertools.groupby(owners or [0] * len(lengths)):
        stop = start + len(list(group))
        found += [(start + a, start + b) for a, b in split(lengths[start:stop])]
        start = stop
    return found


def split(lengths: list[int]) -> list[tuple[int, int]]:
    """Decreasing lengths into runs [start, stop), with the fewest cells of their grids plus GRID for each."""
    best, starts = [0], [0]  # for the first i lengths: the least cost, and the start of the last run
    for i in range(1, len(lengths) + 1):
        costs = [best[j] + (i - j) * lengths[j] ** 2 + GRID for j in range(i)]
        best.append(min(costs))
        starts.append(costs.index(best[i]))
    runs, stop = [], len(lengths)
    while stop:
        runs.append((starts[stop], stop))
        stop = starts[stop]
    return runs[::-1]


def install(model: nn.Module) -> None:
    """Let the model read packed batches as well as padded ones, where it and its library can.

    Padded batches give the same values as before, so a model with another attention than torch's fused one keeps it.
    """
    if GIVEN and model.config.model_type in PACKABLE and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def packs(model: nn.Module, longest: int) -> bool:
    """Whether the model reads packed batches of sequences of at most `longest` tokens."""
    if model.config._attn_implementation != NAME:
        return False
    window = getattr(model.config, "sliding_window", None)  # the masks here have no window
    return not window or longest <= window


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, packing: Attends | None = None, **more,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls: (1, h, N, n) of a packed batch -> (1, N, h, n). A padded batch uses torch's function.

    A packed batch has its masks in `packing`. attention_mask is only there because transformers would make one.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    return packing.attend(module, query, key, value, scaling, more), None


class Explicit(torch.autograd.Function):
    """softmax(scale Q K^T + mask) V as products, rounded to the dtype of Q, and one softmax in float32.

    Q (B, h, T, n); K and V (B, g, T, n), each for h / g heads.
    """

    @staticmethod
    def forward(ctx, Q: Tensor, K: Tensor, V: Tensor, mask: Tensor, scale: float) -> Tensor:
        B, h, T, n = Q.shape
        grouped = Q.reshape(B, K.shape[1], -1, n)  # (B, g, h/g T, n): the heads that share K are rows of one product
        scores = (grouped @ K.mT).float().mul_(scale).view(B, h, T, T)
        P = scores.add_(mask).softmax(-1).to(Q.dtype)
        ctx.save_for_backward(grouped, K, V, P)
        ctx.scale = scale
        return (P.view(B, K.shape[1], -1, T) @ V).view(B, h, T, n)

    @staticmethod
    def backward(ctx, dO: Tensor) -> tuple:
        Q, K, V, P = ctx.saved_tensors
        B, h, T, n = dO.shape
        g = K.shape[1]
        dO = dO.reshape(B, g, -1, n)
        dV = P.view(B, g, -1, T).mT @ dO
        dS = (dO @ V.mT).float().view(B, h, T, T).mul_(P)  # P dP
        dS = dS.sub_(P * dS.sum(-1, keepdim=True)).mul_(ctx.scale).to(Q.dtype).view(B, g, -1, T)
        return (dS @ K).view(B, h, T, n), dS.mT @ Q, dV, None, None


if GIVEN:  # here and not in `install`: a process that gets an installed model needs it, too
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
