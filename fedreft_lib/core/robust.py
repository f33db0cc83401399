"""Robust aggregates of the others, one for each client, and the clipping of updates that can go before any of them.

    trimmed mean       each coordinate: the mean without the f largest and the f smallest values (Yin et al. 2018)
    coordinate median  each coordinate: the trimmed mean that leaves one value or two
    Krum               the row whose n - f - 2 nearest others are nearest, by squares (Blanchard et al. 2017)
    multi-Krum         the mean of the n - f rows that Krum likes best
    norm clipping      no update longer than some multiple of the median one (Sun et al. 2019 clip to a constant)

n is the number of others that take part and f (`byzantine`) how many of them may be hostile. All who take part count
the same. Where too few are left for f, a rule does what their number allows: trimming stops at f = (n - 1) // 2, Krum
counts one neighbour at least (none where there is a single other: it is taken), multi-Krum averages one row at least.
What is proved of Krum needs n > 2 f + 2, and of trimming n > 2 f.

That each client leaves itself out is FedReFT's idea; its union with these rules is ours.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pdist

NUMBERS = 1 << 18  # of a block of columns; bounds the memory, and small blocks sort faster


def trimmed_mean(X: Tensor, taking: Tensor, byzantine: int) -> tuple[Tensor, Tensor]:
    """For each row of X (N, P), the trimmed mean of the other rows that are `taking` part (N,), at least one each.

    Returns shares (N, N) in float64 and the aggregates (N, P). shares[k, j]: the mean over coordinates of the weight of
    j's value, so rows sum to 1 and the diagonal is 0; the aggregates are not shares @ X. Of equal values the first
    client's counts as the smaller. byzantine = N or more gives the coordinate median.

    Each column is sorted once, not once for each client: the trimmed ends of a column without one value are those of
    the whole column, and what that client drops from between them is its own value, or the one at the end that its own
    lies beyond.
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
        dropped = torch.arange(t).clamp(f, t - 1 - f)  # the place that the client at each place drops beside the ends
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
    """For each row of (n, B), the sum of the rows above it and of those below it: no difference, so nothing cancels."""
    above, below = torch.zeros_like(values), torch.zeros_like(values)
    above[1:] = values[:-1].cumsum(0)
    below[:-1] = values[1:].flip(0).cumsum(0).flip(0)
    return above + below


def krum(X: Tensor, taking: Tensor, byzantine: int, *, average: bool = False) -> Tensor:
    """For each row of X (N, P), Krum's choice among the other rows that are `taking` part (N,), at least one each.

    Returns weights (N, N) in float64: 1 for the chosen row; with `average` (multi-Krum), 1 / m for each of the
    m = n - f best scored, the m of Blanchard et al.'s experiments. Of equal scores the first client's is the better, as
    there; with n = f + 3 two rows that are each other's nearest always tie.
    """
    rows = taking.nonzero().squeeze(1)
    t = len(rows)
    D = _squared_distances(X)[rows][:, rows].fill_diagonal_(torch.inf)
    near = D.sort(dim=1).values  # (t, t), the last is inf
    A = torch.zeros(len(X), len(X), dtype=torch.float64)

    c = _neighbours(t, byzantine)
    everybody = near[:, :c].sum(1).unsqueeze(0)  # (1, t), for those who do not take part
    best = _best(everybody, max(1, t - byzantine) if average else 1)
    A[~taking] = torch.zeros(len(X), dtype=torch.float64).index_fill(0, rows[best[0]], 1 / best.shape[1])

    # Row i's score for client k: without k among its neighbours the next one moves up.
    c = _neighbours(t - 1, byzantine)
    nearest, following = near[:, :c].sum(1, keepdim=True), near[:, c : c + 1]
    scores = torch.where(following > D, nearest - D + following, nearest).mT  # (clients, rows)
    best = _best(scores.fill_diagonal_(torch.inf), max(1, t - 1 - byzantine) if average else 1)
    A[rows.unsqueeze(1), rows[best]] = 1 / best.shape[1]
    return A


def _neighbours(n: int, byzantine: int) -> int:
    """How many of its n - 1 neighbours the score of one of n rows counts."""
    return min(max(1, n - byzantine - 2), n - 1)


def _best(scores: Tensor, m: int) -> Tensor:
    """Columns of the m least scores of each row (K, n)."""
    return scores.sort(dim=1, stable=True).indices[:, :m]


def _squared_distances(X: Tensor) -> Tensor:
    """Between all rows of X (N, P), in float64, from differences: a Gram matrix loses near rows beside a far one."""
    n = len(X)
    i, j = torch.triu_indices(n, n, 1)
    D = torch.zeros(n, n, dtype=torch.float64)
    for block in X.split(max(1, NUMBERS // n), dim=1):
        D[i, j] += pdist(block.to(torch.float64)) ** 2
    return D + D.mT


def norm_clipped(X: Tensor, before: Tensor, weights: Tensor, factor: float) -> Tensor:
    """X (N, P) with every update X - before shortened to `factor` times the median update's norm at most.

    The median is over the clients with weights (N,) above 0, the lower of the middle two where they are even: it is an
    honest one's even where half of the clients send huge updates. Norms are float64's, so that no finite float32
    overflows. Updates within the limit are not touched, to the bit.

    Raises ValueError for other shapes, for a factor that is not positive and where no weight is.
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
