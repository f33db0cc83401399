"""Batches without padding: a batch is one row of tokens, and only attention arranges it as a grid.

Sequences of a batch differ in length. A padded batch computes its padding, too: a third to a half of all tokens in the
benchmarks' questions. All parts except attention work on each token separately. So a *packed* batch, (1, N, d), has the
tokens of all sequences one after another, the longest first. transformers calls the function `attention` in every
block. It puts queries, keys and values into grids (B, T) of sequences of similar length, and takes the results out
again.

Up to `EXPLICIT` tokens on a CPU, the textbook form (textbook_attention.py) is faster than torch's fused attention,
whose backward pass takes several times its forward pass in bfloat16. Measured for both passes of a layer of
SmolLM2-135M, as shares of the fused form's time: a fifth in bfloat16, seven tenths in float32 (8 texts of 77 and of 173
tokens). In bfloat16 it rounds each product, also the scores, which the fused form keeps in float32; by itself it is
about half as exact. In SmolLM2-135M other rounding hides that (log-probabilities and gradients are as far from the
float32 model's with either).
"""

import itertools
from dataclasses import dataclass, field
from typing import Protocol

import torch
import transformers
from torch import Tensor, nn

from .textbook_attention import Route, TextbookAttention

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
    """Some sequences of a packed batch that attend together; their tokens are neighbours in its row."""

    index: Tensor  # (n,), flat indices of their tokens into (B, T)
    shape: tuple[int, int]  # B, T
    mask: Tensor  # (B or 1, 1, T or 1, T), added to the scores
    routes: dict[tuple[int, int], Route] = field(default_factory=dict)

    def route(self, h: int, g: int, causal: bool) -> Route:
        """For h heads and g that have keys; made once for all blocks."""
        if (h, g) not in self.routes:
            self.routes[h, g] = Route.of(self.index, self.shape, None if causal else self.mask, h, g)
        return self.routes[h, g]

    def laid_out(self, x: Tensor) -> Tensor:
        """(tokens, h, n) -> (B, h, T, n), zeros where there is no token."""
        B, T = self.shape
        h, n = x.shape[1:]
        return x.new_zeros(B * T, h, n).index_copy(0, self.index, x).view(B, T, h, n).transpose(1, 2)

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
        grids = []
        for start, stop in _runs(lengths, owners):
            own, T = torch.tensor(lengths[start:stop], device=mask.device), lengths[start]
            index = (torch.arange(T, device=mask.device) < own[:, None]).flatten().nonzero()[:, 0]
            rows = mask[order[start:stop]] if len(mask) > 1 else mask
            rows = rows[:, :, : T if mask.shape[2] > 1 else 1, :T]
            grids.append(Grid(index, (stop - start, T), rows))
        return cls(tuple(grids), causal)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, more: dict
    ) -> Tensor:
        sizes = [len(grid.index) for grid in self.grids]
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # (N, h, n), (N, g, n), (N, g, n)
        each = zip(*(x.split(sizes) for x in rows), strict=True) if len(sizes) > 1 else [rows]
        heads, scale = (query.shape[1], key.shape[1]), query.shape[-1] ** -0.5 if scaling is None else scaling
        out = []
        for grid, (q, k, v) in zip(self.grids, each, strict=True):  # (tokens, h, n), (tokens, g, n)
            if q.device.type == "cpu" and grid.shape[1] <= EXPLICIT:
                out.append(TextbookAttention.apply(q, k, v, grid.route(*heads, self.causal), scale))
                continue
            Q, K, V = (grid.laid_out(x) for x in (q, k, v))
            mask = None if self.causal else grid.mask  # torch has faster kernels without a mask
            found, _ = sdpa_attention_forward(
                module, Q, K, V, mask, scaling=scaling, **{**more, "is_causal": self.causal}
            )
            out.append(grid.tokens(found))
        return (out[0] if len(out) == 1 else torch.cat(out)).unsqueeze(0)


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


if GIVEN:  # here and not in `install`: a process that gets an installed model needs it, too
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
