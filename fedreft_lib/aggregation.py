"""Aggregation as a mixing matrix: X' = M X for the federation matrix X (N, P).

    FedAvg       M = 1 p^T                        everyone gets the weighted mean of all
    All-But-Me   M = (1 - lam) I + lam A          A has a zero diagonal: row k weighs the others for client k
                 A = exclude-self mean, or the weights that express the geometric median of the others

FedReFT's abstract names All-But-Me and its authors name the geometric median by Weiszfeld's iteration; the
rest (the starting point, the stopping rule, weights by example counts) is a reconstruction. The other robust rules
(robust.py) are not the paper's.

The geometric median z = sum_j a_j x_j of points is a convex combination of them, so distances to it follow from
the Gram matrix G of the points around an origin alone: |z - x_j|^2 = a^T G a - 2 (G a)_j + G_jj. Weiszfeld's iteration
on the N x N Gram matrix therefore finds all N leave-one-out medians at once, whatever P is.

That sum cancels for points that are near to each other and far from the origin, and one far row drags the mean, the
first origin, away from all others. A median that turns out to lie in such a crowd is sought again around a row of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import robust
from .states import is_finite

# Weiszfeld converges linearly in general; an iteration costs N^3 operations in Gram space, so a tight tolerance is
# cheap.
TOLERANCE = 1e-10
ITERATIONS = 2000
# Squared distances carry rounding of 1e-16 of the squared distances to the origin: less than 1e-14 means nothing.
ROUNDING = 1e-14
# Points of weight w nearer to z than this times w, in units of how far from the origin z's parts are: a crowd. Around
# one of its rows it is a crowd no more, since Weiszfeld's weights p_j / |z - x_j| then have parts that are near too.
CROWD = 0.03
NUMBERS = 1 << 23  # of a block of columns in float64, 64 MB: bounds the memory of many clients
ORIGINS = 12  # each new origin resolves seven more digits, and float32 spans 76


@dataclass(frozen=True)
class Aggregate:
    """What each client receives.

    A (N, N): row k weighs the clients for client k. aggregate (N, P): A X, except under the rules that take each
    coordinate from other clients (trimmed mean, coordinate median): there A[k, j] is the share of the coordinates in
    which j's value was taken, and only `aggregate` is the result. residual (N,): how far row k is from
    optimal, the norm of the objective's least subgradient over the sum of the weights: 0 at a geometric median,
    1 at most, and 0 for rules that do not minimise anything.
    """

    A: Tensor
    aggregate: Tensor
    residual: Tensor


def geometric_median(X: Tensor, weights: Tensor | None = None) -> Aggregate:
    """argmin_z sum_j p_j |z - x_j| over the rows of X (N, P), as one row: A (1, N), aggregate (1, P), residual (1,)."""
    p = _checked_weights(X, weights)
    return _combined(X, *_medians(X, p.unsqueeze(0)))


def all_but_me(
    X: Tensor, kind: str = "geometric_median", weights: Tensor | None = None, byzantine: int = 1
) -> Aggregate:
    """For each client, a mean or a robust aggregate of all the others (FedReFT).

    kind: "geometric_median" or "mean" (the paper's), or one of robust.py: "trimmed_mean", "coordinate_median",
    "krum", "multi_krum".
    weights (N,): example counts or other importances; equal by default, since a median by example counts would let
    the largest client stand in for "the others". A client of weight 0 is nobody's "other" but has a row of its own:
    that is how a client that was set aside for a round still receives. To the rules of robust.py weights only say
    who takes part: 0 or not.
    byzantine: how many hostile clients among the others trimmed mean, Krum and multi-Krum are made for.

    With three clients of equal weight the others are two points, and the median that starts at their mean is it.

    Raises ValueError for fewer than two clients, or where some client has no other with a weight.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
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
    if X.ndim != 2 or len(X) == 0 or not is_finite(X):
        raise ValueError(f"X must be a finite matrix of clients by parameters, got shape {tuple(X.shape)}")
    p = torch.ones(len(X)) if weights is None else torch.as_tensor(weights)
    p = p.to(torch.float64)
    if p.shape != (len(X),) or not bool(p.isfinite().all()) or bool((p < 0).any()) or float(p.sum()) <= 0:
        raise ValueError(f"weights must be {len(X)} finite numbers >= 0 with a positive sum, got {p.tolist()}")
    return p


def _others(p: Tensor) -> Tensor:
    """Row k: the weights of the others for client k, (N, N)."""
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
    "geometric_median": lambda X, p, f: _combined(X, *_medians(X, _others(p))),
    "mean": lambda X, p, f: _combined(X, _others(p) / _others(p).sum(1, keepdim=True)),
    "trimmed_mean": _by_coordinate,
    "coordinate_median": lambda X, p, f: _by_coordinate(X, p, len(X)),  # trimmed as far as it goes
    "krum": lambda X, p, f: _combined(X, robust.krum(X, p > 0, f)),
    "multi_krum": lambda X, p, f: _combined(X, robust.krum(X, p > 0, f, average=True)),
}
KINDS = tuple(_RULES)


def _gram(X: Tensor, origin: int | None) -> Tensor:
    """Gram matrix (N, N) of the rows around their mean, or around one of them, in float64, by blocks of columns."""
    G = torch.zeros(len(X), len(X), dtype=torch.float64)
    columns = min(1 << 16, max(1, NUMBERS // len(X)))
    for block in X.split(columns, dim=1):
        block = block.to(torch.float64, copy=True)
        block -= block.mean(0) if origin is None else block[origin].clone()
        G.addmm_(block, block.mT)
    return G


def _medians(X: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """K weighted geometric medians of the rows of X (N, P), weights (K, N): barycentric (K, N), and residuals (K,)."""
    p = weights / weights.sum(1, keepdim=True)
    A, residual = torch.empty_like(p), torch.empty(len(p), dtype=p.dtype)
    todo, start, origin = torch.arange(len(p)), p, None
    for _ in range(ORIGINS):
        A[todo], residual[todo], crowd = _weiszfeld(_gram(X, origin), p[todo], start)
        again = crowd.any(1)
        if not bool(again.any()):
            break
        todo, crowd = todo[again], crowd[again]
        start, origin = crowd / crowd.sum(1, keepdim=True), int(crowd[0].argmax())
    return A, residual


def _weiszfeld(G: Tensor, p: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K weighted geometric medians of N points given by their Gram matrix G (N, N); weights p (K, N) of sum 1.

    Starts at A (K, N); returns barycentric coordinates (K, N), residuals (K,) and the weights of the points that crowd
    around the median (K, N), 0 for others: where there are any, the origin is too far off to tell them apart, and with
    half of the weight they also end the search. The step is Vardi and Zhang's (2000), which is Weiszfeld's away from
    the points and leaves a point that is not the median. A point is the median if the others pull with no more than its
    weight: the nearest one is tried, since steps towards it would never arrive.
    """
    for i in range(1, ITERATIONS + 1):
        distance, on, reach = _distances(A, G)
        pull, total, norm, held = _forces(p, A, distance, on, G)
        residual = (norm - held).clamp_min(0.0)
        unsettled = residual > TOLERANCE
        step = (1 - held / norm.clamp_min(1e-300)).clamp_min(0.0)
        following = torch.where(total > 0, (1 - step) * A + step * pull / total.clamp_min(1e-300), A)
        if i % 8 == 0:  # seldom: most medians are found by then
            near = p * (distance < CROWD / 2 * reach)
            unsettled &= (near.sum(1, keepdim=True) < 0.5) | (near.count_nonzero(1).unsqueeze(1) < 2)
            point, pulled, own = _nearest_point(p, distance, G)
            following = torch.where(pulled <= own + TOLERANCE, point, following)
        if not bool(unsettled.any()):
            break
        A = torch.where(unsettled, following, A)
    # A point that holds z is the median itself: z goes onto it, not only near it.
    A = torch.where((held > 0) & (residual <= TOLERANCE), p * on / held.clamp_min(1e-300), A)
    return A, residual.squeeze(1), _crowd(p, distance, reach)


def _nearest_point(p: Tensor, distance: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of the points with a weight (K, N), how strongly the others pull on it, and its own weight (K, 1).

    Points that are one point share by weight.
    """
    nearest = distance.masked_fill(p == 0, torch.inf).argmin(1)
    apart, same, _ = _distances(torch.nn.functional.one_hot(nearest, len(G)).to(G.dtype), G)
    shares = p * same
    shares = shares / shares.sum(1, keepdim=True)
    *_, norm, held = _forces(p, shares, apart, same, G)
    return shares, norm, held


def _crowd(p: Tensor, distance: Tensor, reach: Tensor) -> Tensor:
    """The weights p (K, N) of the largest crowd of two or more points around each of K points, 0 for all others."""
    near, order = distance.masked_fill(p == 0, torch.inf).sort(dim=1)
    packed = near < CROWD * p.gather(1, order).cumsum(1) * reach
    packed[:, 0] = False
    return p * (distance <= near.masked_fill(~packed, -1.0).amax(1, keepdim=True))


def _distances(A: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the points A (K, N) to the N given ones: distances (K, N), which of them are 0 but for rounding, and
    the mean distance of what makes up each point to the origin (K, 1), which is the scale of the rounding."""
    GA, squares = A @ G, G.diagonal()
    reach = A @ squares.sqrt().unsqueeze(1)
    squared = (A * GA).sum(1, keepdim=True) - 2 * GA + squares
    on = squared <= ROUNDING * (reach**2 + squares)
    return squared.clamp_min(0.0).sqrt(), on, reach


def _forces(p: Tensor, A: Tensor, distance: Tensor, on: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At the points A (K, N): p_j / |z - x_j| of the points that z is not on, their sum, the norm of the gradient over
    those points, and the weight of the points that z is on."""
    pull = torch.where(on, 0.0, p / distance.clamp_min(1e-300))
    total = pull.sum(1, keepdim=True)
    gradient = total * A - pull  # sum_j pull_j (z - x_j), as barycentric coordinates; its norm by the Gram matrix
    norm = (gradient * (gradient @ G)).sum(1, keepdim=True).clamp_min(0.0).sqrt()
    return pull, total, norm, (p * on).sum(1, keepdim=True)
