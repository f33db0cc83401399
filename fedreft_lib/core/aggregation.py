"""Aggregation as a mixing matrix: X' = M X for the federation matrix X (N, P).

    FedAvg       M = 1 p^T                        every client gets the weighted mean of all
    All-But-Me   M = (1 - lam) I + lam A          A has a zero diagonal: row k holds the weights of the others
                 A = exclude-self mean, or the weights that form the geometric median of the others

FedReFT's abstract names All-But-Me, its authors the geometric median by Weiszfeld's iteration. The iteration's start,
its stopping rule and weights by example counts are a reconstruction. The rules of robust.py are not the paper's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import robust
from .geometric_median import medians
from .state import is_finite


@dataclass(frozen=True)
class Aggregate:
    """What each client receives.

    A (N, N): row k holds the weights of the clients for client k. aggregate (N, P): A X. Trimmed mean and coordinate
    median weigh each coordinate by itself: there A[k, j] is the mean weight of j's values, and only `aggregate` is the
    result. residual (N,): how far row k is from the optimum, as the norm of the objective's least subgradient over the
    sum of the weights: 0 at a geometric median, at most 1, and 0 for rules that minimise nothing.
    """

    A: Tensor
    aggregate: Tensor
    residual: Tensor


def geometric_median(X: Tensor, weights: Tensor | None = None) -> Aggregate:
    """argmin_z sum_j p_j |z - x_j| over the rows of X (N, P), as one row: A (1, N), aggregate (1, P), residual (1,)."""
    p = _checked_weights(X, weights)
    return _combined(X, *medians(X, p.unsqueeze(0)))


def all_but_me(
    X: Tensor, kind: str = "geometric_median", weights: Tensor | None = None, byzantine: int = 1
) -> Aggregate:
    """For each client, a mean or a robust aggregate of all the others (FedReFT).

    kind: "geometric_median" or "mean" (the paper's), or "trimmed_mean", "coordinate_median", "krum", "multi_krum".
    weights (N,): importances, equal by default: example counts would let the largest client stand for "the others". A
    client of weight 0 counts for nobody but has its own row: so a refused client still receives. The rules of robust.py
    only read whether a weight is 0.
    byzantine: the number of hostile others that trimmed mean, Krum and multi-Krum tolerate.

    With three clients of equal weight the others are two points: the iteration starts at their mean and stays there.

    Raises ValueError for bad arguments, and where a client has no other with a weight above 0.
    """
    if kind not in AGGREGATIONS:
        raise ValueError(f"kind must be one of {AGGREGATIONS}, got {kind!r}")
    if isinstance(byzantine, bool) or not isinstance(byzantine, int) or byzantine < 0:
        raise ValueError(f"byzantine must be a whole number of clients >= 0, got {byzantine!r}")
    p = _checked_weights(X, weights)
    if bool((_others(p).sum(1) == 0).any()):
        raise ValueError("all-but-me needs at least one other client with a weight above 0 for every client")
    return _RULES[kind](X, p, byzantine)


def mean(X: Tensor, weights: Tensor | None = None) -> Aggregate:
    """FedAvg: every row is the weighted mean of all clients."""
    p = _checked_weights(X, weights)
    A = (p / p.sum()).repeat(len(p), 1).to(X.dtype)
    return Aggregate(A, A @ X, torch.zeros(len(p), dtype=X.dtype))


def _checked_weights(X: Tensor, weights: Tensor | None) -> Tensor:
    """Weights (N,) in float64; X must be a finite (N, P) matrix."""
    if X.ndim != 2 or len(X) == 0 or not is_finite(X):
        raise ValueError(f"X must be a finite matrix of clients by parameters, got shape {tuple(X.shape)}")
    p = torch.ones(len(X)) if weights is None else torch.as_tensor(weights)
    p = p.to(torch.float64)
    if p.shape != (len(X),) or not bool(p.isfinite().all()) or bool((p < 0).any()) or float(p.sum()) <= 0:
        raise ValueError(f"weights must be {len(X)} finite numbers >= 0 with a positive sum, got {p.tolist()}")
    return p


def _others(p: Tensor) -> Tensor:
    """(N, N): row k holds the weights of the others for client k."""
    return p.repeat(len(p), 1).fill_diagonal_(0.0)


def _combined(X: Tensor, A: Tensor, residual: Tensor | None = None) -> Aggregate:
    """The rows of A (K, N) applied to X (N, P)."""
    residual = torch.zeros(len(A)) if residual is None else residual
    A = A.to(X.dtype)
    return Aggregate(A, A @ X, residual.to(X.dtype))


def _by_coordinate(X: Tensor, p: Tensor, byzantine: int) -> Aggregate:
    shares, aggregate = robust.trimmed_mean(X, p > 0, byzantine)
    return Aggregate(shares.to(X.dtype), aggregate, torch.zeros(len(X), dtype=X.dtype))


_RULES: dict[str, Callable[[Tensor, Tensor, int], Aggregate]] = {
    "geometric_median": lambda X, p, f: _combined(X, *medians(X, _others(p))),
    "mean": lambda X, p, f: _combined(X, _others(p) / _others(p).sum(1, keepdim=True)),
    "trimmed_mean": _by_coordinate,
    "coordinate_median": lambda X, p, f: _by_coordinate(X, p, len(X)),  # trims as much as possible
    "krum": lambda X, p, f: _combined(X, robust.krum(X, p > 0, f)),
    "multi_krum": lambda X, p, f: _combined(X, robust.krum(X, p > 0, f, average=True)),
}
AGGREGATIONS = tuple(_RULES)
