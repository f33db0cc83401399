"""Robust aggregates of the others, one for each client, and norm clipping, which can precede any aggregate.

    trimmed mean       each coordinate: the mean without the f largest and the f smallest values (Yin et al. 2018)
    coordinate median  each coordinate: the trimmed mean that leaves one value or two
    Krum               the row with the least squared distances to its n - f - 2 nearest rows (Blanchard et al. 2017)
    multi-Krum         the mean of the n - f rows with the best Krum scores
    norm clipping      no update longer than some multiple of the median norm (Sun et al. 2019 clip to a constant)

n is the number of others that take part, and f (`byzantine`) how many of them may be hostile. All count the same.
Where n is too small for f, a rule does what n allows: trimming stops at f = (n - 1) // 2, Krum counts at least one
neighbour (a single other has none and is taken), multi-Krum averages at least one row. The proofs need n > 2 f + 2 for
Krum and n > 2 f for trimming.

That each client leaves itself out is FedReFT's idea; the combination with these rules is ours.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pdist

NUMBERS = 1 << 18  # of a block of columns; bounds the memory, and small blocks sort faster


def trimmed_mean(X: Tensor, taking: Tensor, byzantine: int) -> tuple[Tensor, Tensor]:
    """For each row of X (N, P), the trimmed mean of the other rows that are `taking` part (N,), at least one each.

    Returns shares (N, N) in float64 and the aggregates (N, P). shares[k, j]: the mean weight of j's values over the
    coordinates, so rows sum to 1 and the diagonal is 0. The aggregates are not shares @ X. Of equal values the first
    client's counts as the smaller. byzantine >= N gives the coordinate median.

    Each column is sorted once for all clients. Client k's trimmed mean drops the f values at both ends of the whole
    column and one value between them: k's own, or, if k's own is at an end, the value next to that end.
    """
    rows = taking.nonzero().squeeze(1)
    t, (N, P) = len(rows), X.shape
    f, g = min(byzantine, (t - 2) // 2), min(byzantine, (t - 1) // 2)  # with t - 1 others, and with t
    aggregate = torch.empty_like(X)
    kept, kept_by_all = torch.zeros(t, t, dtype=torch.int64), torch.zeros(t, dtype=torch.int64)
    columns = max(1, NUMBERS // t)
    for block, into in zip(X.split(columns, dim=1), aggregate.split(columns, dim=1), strict=True):
        values, order = block[rows].sort(dim=0, stable=True)  # (t, B)
        values = values.to(torch.float64)
        dropped = torch.arange(t).clamp(f, t - 1 - f)  # for each client's place: the place it drops between the ends
        means = _sums_without_one(values[f : t - f])[dropped - f] / (t - 1 - 2 * f)
        into[rows] = torch.empty_like(values).scatter_(0, order, means).to(X.dtype)
        kept += order[f : t - f].flatten().bincount(minlength=t)
        kept -= (order * t + order[dropped]).flatten().bincount(minlength=t * t).view(t, t)
        if t < N:
            into[~taking] = values[g : t - g].mean(0).to(X.dtype)
            kept_by_all += order[g : t - g].flatten().bincount(minlength=t)
    shares = torch.zeros(N, N, dtype=torch.float64)
    shares[:, rows] = kept_by_all.double() / ((t - 2 * g) * P)
    shares[rows.unsqueeze(1), rows] = kept.double() / ((t - 1 - 2 * f) * P)
    return shares, aggregate


def _sums_without_one(values: Tensor) -> Tensor:
    """For each row of (n, B), the sum of all other rows. It subtracts nothing, so no digits cancel."""
    above, below = torch.zeros_like(values), torch.zeros_like(values)
    above[1:] = values[:-1].cumsum(0)
    below[:-1] = values[1:].flip(0).cumsum(0).flip(0)
    return above + below


def krum(X: Tensor, taking: Tensor, byzantine: int, *, average: bool = False) -> Tensor:
    """For each row of X (N, P), Krum's choice among the other rows that are `taking` part (N,), at least one each.

    Returns weights (N, N) in float64: 1 for the chosen row; with `average` (multi-Krum), 1 / m for each of the m best
    rows, m = n - f as in Blanchard et al.'s experiments. The first client wins a tie, as in that paper. With n = f + 3,
    two rows that are each other's nearest always tie.
    """
    rows = taking.nonzero().squeeze(1)
    t = len(rows)
    D = _squared_distances(X)[rows][:, rows].fill_diagonal_(torch.inf)
    near = D.sort(dim=1).values  # (t, t), the last is inf
    A = torch.zeros(len(X), len(X), dtype=torch.float64)

    c = _neighbours(t, byzantine)
    everybody = near[:, :c].sum(1).unsqueeze(0)  # (1, t), for the clients that do not take part
    best = _best(everybody, max(1, t - byzantine) if average else 1)
    A[~taking] = torch.zeros(len(X), dtype=torch.float64).index_fill(0, rows[best[0]], 1 / best.shape[1])

    # Row i's score for client k leaves k out: if k is among i's nearest rows, the next row takes its place.
    c = _neighbours(t - 1, byzantine)
    nearest, following = near[:, :c].sum(1, keepdim=True), near[:, c : c + 1]
    scores = torch.where(following > D, nearest - D + following, nearest).mT  # (clients, rows)
    best = _best(scores.fill_diagonal_(torch.inf), max(1, t - 1 - byzantine) if average else 1)
    A[rows.unsqueeze(1), rows[best]] = 1 / best.shape[1]
    return A


def _neighbours(n: int, byzantine: int) -> int:
    """How many nearest rows a Krum score counts among n rows."""
    return min(max(1, n - byzantine - 2), n - 1)


def _best(scores: Tensor, m: int) -> Tensor:
    """For each row of scores (K, n), the columns of the m smallest."""
    return scores.sort(dim=1, stable=True).indices[:, :m]


def _squared_distances(X: Tensor) -> Tensor:
    """Between all rows of X (N, P), in float64, from differences: with a far row, a Gram matrix loses small ones."""
    n = len(X)
    i, j = torch.triu_indices(n, n, 1)
    D = torch.zeros(n, n, dtype=torch.float64)
    for block in X.split(max(1, NUMBERS // n), dim=1):
        D[i, j] += pdist(block.to(torch.float64)) ** 2
    return D + D.mT


def norm_clipped(X: Tensor, before: Tensor, weights: Tensor, factor: float) -> Tensor:
    """X (N, P), with every update X - before shortened to at most `factor` times the median norm.

    The median is over the clients with weights (N,) above 0, and the lower of the middle two for an even number. It is
    then an honest client's norm even where half of the clients send huge updates. Norms are in float64, so no finite
    float32 overflows. Updates within the limit keep their bits.

    Raises ValueError for other shapes, for a factor that is not finite and positive, and where no weight is above 0.
    """
    if X.shape != before.shape or X.ndim != 2 or tuple(weights.shape) != (len(X),):
        raise ValueError(
            "X and before must be matrices of one shape with a weight for each row, "
            f"got {tuple(X.shape)}, {tuple(before.shape)} and {tuple(weights.shape)}"
        )
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor must be a finite number above 0, got {factor}")
    if not bool((weights > 0).any()):
        raise ValueError("norm clipping needs a client with a weight above 0: the median update is theirs")
    pairs = list(zip(X, before, strict=True))
    norms = torch.stack([(x.double() - x0.double()).norm() for x, x0 in pairs])
    limit = factor * norms[weights > 0].median()
    beyond = (norms > limit).nonzero().flatten().tolist()
    clipped = X.clone() if beyond else X
    for k in beyond:
        x, x0 = (row.double() for row in pairs[k])
        clipped[k] = (x0 + limit / norms[k] * (x - x0)).to(X.dtype)
    return clipped
