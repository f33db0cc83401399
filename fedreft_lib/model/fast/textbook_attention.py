"""Attention in its textbook form, for the texts of a packed batch, as one function with its own backward pass.

For each text and each of the g heads that have keys, with the h / g query heads that share them as rows of one product,

    S = scale Q K^T + mask      P = softmax(S)                  O = P V
    dV = P^T dO                 dS = softmax'(P, dO V^T)        dQ = scale dS K         dK = scale dS^T Q

A token of a decoder sees only the tokens before it. So queries are taken in parts of about `PART` tokens, each with the
keys up to its end: that leaves out nearly half of all scores. Tokens are gathered once from the batch's row into the
order of these products, and what they read once back into the row.

Products and P are rounded to the dtype of the batch; the softmax is computed in float32.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

PART = 64  # tokens: with more, fewer scores are left out; with fewer, products are too small to be fast


@dataclass(frozen=True)
class Part:
    """Some queries of each text, as rows of its products, and how many keys they see."""

    rows: slice
    keys: int
    masked: int  # the mask is added to the scores of this key and all after it
    mask: Tensor  # float32, (B or 1, 1, queries or 1, 1, keys - masked)


@dataclass(frozen=True)
class Route:
    """How the tokens of B texts, one text after another, get into the products of a grid (B, T), and back.

    A text's missing tokens are copies of its last one: masks hide them from the others, what they read is dropped, and
    so their part of a gradient is zero.
    """

    shape: tuple[int, int, int, int]  # B, g, T, h / g
    queries: Tensor  # (B g T h/g,), flat indices into (tokens, h)
    keys: Tensor  # (B g T,), flat indices into (tokens, g)
    queries_back: Tensor  # (tokens h,), where each of them is among the queries
    keys_back: Tensor  # (tokens g,)
    missing: Tensor  # where the queries of missing tokens are
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, cells: Tensor, shape: tuple[int, int], mask: Tensor | None, h: int, g: int) -> "Route":
        """cells (tokens,): where each token is in the grid, shape (B, T), as a flat index.

        mask (B or 1, 1, T or 1, T): added to the scores; None: each token sees those before it in its text.
        """
        (B, T), j, device = shape, h // g, cells.device
        row, column = (cells // T)[:, None], (cells % T)[:, None]
        ends = row[:, 0].bincount(minlength=B).cumsum(0)[:, None]  # (B, 1)
        starts = torch.cat([ends.new_zeros(1, 1), ends[:-1]])
        tokens = torch.minimum(starts + torch.arange(T, device=device), ends - 1)  # (B, T)
        head, own = torch.arange(h, device=device), torch.arange(g, device=device)
        queries_back = (((row * g + head // j) * T + column) * j + head % j).flatten()
        missing = torch.ones(B * h * T, dtype=torch.bool, device=device).index_fill(0, queries_back, False)
        return cls(
            (B, g, T, j),
            (tokens[:, None, :, None] * h + head.view(g, 1, j)).flatten(),
            (tokens[:, None, :] * g + own[:, None]).flatten(),
            queries_back,
            ((row * g + own) * T + column).flatten(),
            missing.nonzero()[:, 0],
            _triangle(T, j, device) if mask is None else (Part(slice(None), T, 0, mask.float().unsqueeze(3)),),
        )

    def there(self, x: Tensor, index: Tensor) -> Tensor:
        """(tokens, h, n) -> (B g, T h/g, n) by `queries`; (tokens, g, n) -> (B g, T, n) by `keys`."""
        return x.flatten(0, 1).index_select(0, index).view(self.shape[0] * self.shape[1], -1, x.shape[2])

    def back(self, x: Tensor, index: Tensor) -> Tensor:
        """The inverse of `there`, by `queries_back` or `keys_back`: (tokens, h or g, n)."""
        heads = x.shape[0] * x.shape[1] // (self.shape[0] * self.shape[2])
        return x.flatten(0, 1).index_select(0, index).view(-1, heads, x.shape[2])

    def probabilities(self, part: Part, Q: Tensor, K: Tensor, scale: float) -> Tensor:
        """P (B g, queries h/g, keys) of the part."""
        B, g, _, j = self.shape
        scores = (Q[:, part.rows] @ K[:, : part.keys].mT).float().mul_(scale)
        scores.view(B, g, -1, j, part.keys)[..., part.masked :].add_(part.mask)
        return scores.softmax(-1).to(Q.dtype)


def _triangle(T: int, j: int, device: torch.device) -> tuple[Part, ...]:
    """The parts of T tokens of which each sees those before it."""
    count, lowest, parts = -(-T // PART), torch.finfo(torch.float32).min, []
    for a, b in pairwise([T * i // count for i in range(count + 1)]):
        later = torch.full((b - a, b - a), lowest, device=device).triu(1)
        parts.append(Part(slice(a * j, b * j), b, a, later.view(1, 1, b - a, 1, b - a)))
    return tuple(parts)


class TextbookAttention(torch.autograd.Function):
    """What each token reads, (tokens, h, n), from q (tokens, h, n), k and v (tokens, g, n)."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, route: Route, scale: float) -> Tensor:
        Q, K, V = route.there(q, route.queries), route.there(k, route.keys), route.there(v, route.keys)
        each = [route.probabilities(part, Q, K, scale) for part in route.parts]
        read = [P @ V[:, : part.keys] for part, P in zip(route.parts, each, strict=True)]
        ctx.save_for_backward(Q, K, V, *each)
        ctx.route, ctx.scale = route, scale
        return route.back(torch.cat(read, 1), route.queries_back)

    @staticmethod
    def backward(ctx, dO: Tensor) -> tuple:
        (Q, K, V, *each), route, scale = ctx.saved_tensors, ctx.route, ctx.scale
        dO = route.there(dO, route.queries)
        dO.view(-1, dO.shape[2]).index_fill_(0, route.missing, 0)
        dQ, dK, dV = [], torch.zeros_like(K), torch.zeros_like(V)
        for part, P in zip(route.parts, each, strict=True):
            seen, own = slice(part.keys), dO[:, part.rows]
            dV[:, seen] += P.mT @ own
            dS = torch._softmax_backward_data(own @ V[:, seen].mT, P, -1, P.dtype)
            dQ.append(dS @ K[:, seen])
            dK[:, seen] += dS.mT @ Q[:, part.rows]
        dq = route.back(torch.cat(dQ, 1).mul_(scale), route.queries_back)
        return dq, route.back(dK.mul_(scale), route.keys_back), route.back(dV, route.keys_back), None, None
