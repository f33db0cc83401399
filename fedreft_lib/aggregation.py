"""Aggregation as a mixing matrix: X' = M X for the federation matrix X (N, P).

    FedAvg       M = 1 p^T                        everyone gets the weighted mean of all
    All-But-Me   M = (1 - lam) I + lam A          A has a zero diagonal: row k weighs the others for client k
                 A = exclude-self mean, or the weights that express the geometric median of the others

FedReFT's abstract names All-But-Me and its authors name the geometric median by Weiszfeld's iteration; the
rest (the starting point, the stopping rule, weights by example counts) is a reconstruction.

The geometric median z = sum_j a_j x_j of points is a convex combination of them, so distances to it follow from
the Gram matrix G of the centred points alone: |z - x_j|^2 = a^T G a - 2 (G a)_j + G_jj. Weiszfeld's iteration on
the N x N Gram matrix therefore finds all N leave-one-out medians at once, whatever P is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("geometric_median", "mean")
# Weiszfeld converges linearly in general and slowly near a data point; an iteration costs N^3 operations in Gram
# space, so a tight tolerance is cheap.
TOLERANCE = 1e-10
ITERATIONS = 2000


@dataclass(frozen=True)
class Aggregate:
    """What each client receives.

    A (N, N): row k weighs the clients for client k. aggregate (N, P): A X. residual (N,): how far row k is from
    optimal, the norm of the objective's least subgradient over the sum of the weights: 0 at a geometric median,
    1 at most, and 0 for rules that do not minimise anything.
    """

    A: Tensor
    aggregate: Tensor
    residual: Tensor


def geometric_median(X: Tensor, weights: Tensor | None = None) -> Aggregate:
    """argmin_z sum_j p_j |z - x_j| over the rows of X (N, P), as one row: A (1, N), aggregate (1, P), residual (1,)."""
    p = _checked_weights(X, weights)
    A, residual = _weiszfeld(_gram(X), p.unsqueeze(0))
    return Aggregate(A.to(X.dtype), (A.to(X.dtype)) @ X, residual.to(X.dtype))


def all_but_me(X: Tensor, kind: str = "geometric_median", weights: Tensor | None = None) -> Aggregate:
    """For each client, the mean or the geometric median of all the others (FedReFT).

    weights (N,): example counts or other importances; equal by default, since a median by example counts would let
    the largest client stand in for "the others". A client of weight 0 is nobody's "other" but has a row of its own:
    that is how a client that was set aside for a round still receives.

    With three clients of equal weight the others are two points, and the median that starts at their mean is it.

    Raises ValueError for fewer than two clients, or where some client has no other with a weight.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    p = _checked_weights(X, weights)
    others = p.repeat(len(p), 1).fill_diagonal_(0.0)  # (N, N)
    if bool((others.sum(1) == 0).any()):
        raise ValueError("all-but-me needs at least one other client with a weight above 0 for every client")
    if kind == "mean":
        A, residual = others / others.sum(1, keepdim=True), torch.zeros(len(p), dtype=torch.float64)
    else:
        A, residual = _weiszfeld(_gram(X), others)
    A = A.to(X.dtype)
    return Aggregate(A, A @ X, residual.to(X.dtype))


def mean(X: Tensor, weights: Tensor | None = None) -> Aggregate:
    """FedAvg: every row is the weighted mean of all clients."""
    p = _checked_weights(X, weights)
    A = (p / p.sum()).repeat(len(p), 1).to(X.dtype)
    return Aggregate(A, A @ X, torch.zeros(len(p), dtype=X.dtype))


def mix(X: Tensor, A: Tensor, mixing: float | Tensor) -> Tensor:
    """(1 - lam) X + lam A X, (N, P). mixing: one lam, or one for each client (N,), in [0, 1]."""
    return take_in(X, A.to(X.dtype) @ X, mixing)


def take_in(X: Tensor, received: Tensor, mixing: float | Tensor) -> Tensor:
    """(1 - lam) X + lam received, (N, P): the client's side of `mix`. Raises ValueError for lam outside [0, 1]."""
    lam = torch.as_tensor(mixing, dtype=X.dtype).expand(len(X)).unsqueeze(1)
    if not bool(((lam >= 0) & (lam <= 1)).all()):
        raise ValueError(f"mixing must be in [0, 1], got {mixing}")
    return (1 - lam) * X + lam * received


def mixing_matrix(A: Tensor, mixing: float | Tensor) -> Tensor:
    """M = (1 - lam) I + lam A (N, N): who listens to whom."""
    return mix(torch.eye(len(A), dtype=A.dtype), A, mixing)


def _checked_weights(X: Tensor, weights: Tensor | None) -> Tensor:
    """Weights (N,) in float64; X must be a finite (N, P) matrix."""
    if X.ndim != 2 or len(X) == 0 or not bool(X.isfinite().all()):
        raise ValueError(f"X must be a finite matrix of clients by parameters, got shape {tuple(X.shape)}")
    p = torch.ones(len(X)) if weights is None else torch.as_tensor(weights)
    p = p.to(torch.float64)
    if p.shape != (len(X),) or not bool(p.isfinite().all()) or bool((p < 0).any()) or float(p.sum()) <= 0:
        raise ValueError(f"weights must be {len(X)} finite numbers >= 0 with a positive sum, got {p.tolist()}")
    return p


def _gram(X: Tensor, columns: int = 1 << 16) -> Tensor:
    """Gram matrix (N, N) of the rows around their mean, summed in float64 a block of columns at a time."""
    G = torch.zeros(len(X), len(X), dtype=torch.float64)
    for block in X.split(columns, dim=1):
        block = block.to(torch.float64)
        block = block - block.mean(0)
        G += block @ block.mT
    return G


def _weiszfeld(G: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """K weighted geometric medians of N points given by their Gram matrix G (N, N); weights (K, N).

    Returns barycentric coordinates (K, N) and residuals (K,). Starts at the weighted means. The step is Vardi and
    Zhang's (2000), which is Weiszfeld's away from the points and does not get stuck on one that is not the median.
    """
    p = weights / weights.sum(1, keepdim=True)
    A = p.clone()
    scale = float(G.diagonal().max()) ** 0.5
    if scale == 0.0:  # all points are one point
        return A, torch.zeros(len(p), dtype=G.dtype)
    G = G / scale**2
    touching = 1e-7  # relative to the spread; squared distances carry rounding of 1e-16, so less means nothing
    for _ in range(ITERATIONS):
        GA = A @ G  # (K, N)
        distance = ((A * GA).sum(1, keepdim=True) - 2 * GA + G.diagonal()).clamp_min(0.0).sqrt()
        on = distance <= touching
        pull = torch.where(on, 0.0, p / distance.clamp_min(touching))  # p_j / |z - x_j| of the points that z is not on
        total = pull.sum(1, keepdim=True)
        # Gradient over those points, sum_j pull_j (z - x_j), as barycentric coordinates; its norm by the Gram matrix.
        gradient = total * A - pull
        norm = (gradient * (gradient @ G)).sum(1, keepdim=True).clamp_min(0.0).sqrt()
        held = (p * on).sum(1, keepdim=True)  # a point of weight w holds z while the others pull with less than w
        residual = (norm - held).clamp_min(0.0)
        # A point that holds z is the median itself: z goes onto it, not only near it.
        nearest = torch.nn.functional.one_hot(distance.argmin(1), A.shape[1]).to(A.dtype)
        A = torch.where((held > 0) & (residual == 0), nearest, A)
        if bool((residual <= TOLERANCE).all()):
            break
        step = torch.where(norm > 0, (1 - held / norm.clamp_min(1e-300)).clamp_min(0.0), 0.0)
        A = A - torch.where(total > 0, step * gradient / total.clamp_min(1e-300), 0.0)
    return A, residual.squeeze(1)
