"""Geometric medians of the rows of a matrix: all leave-one-out medians at once.

The geometric median z = sum_j a_j x_j is a convex combination of the points. Distances to it therefore need only the
Gram matrix G of the points around an origin: |z - x_j|^2 = a^T G a - 2 (G a)_j + G_jj. Weiszfeld's iteration on this
N x N matrix finds all N leave-one-out medians at once, for any P.

The sum loses its digits for points that are near to each other and far from the origin. The first origin is the mean,
and one far row pulls it away from all others. A median that lies in such a crowd is computed again around one of the
crowd's rows.
"""

import torch
from torch import Tensor

# Weiszfeld's iteration converges linearly in general. One iteration costs N^3 operations on the Gram matrix, so a tight
# tolerance is cheap.
TOLERANCE = 1e-10
ITERATIONS = 2000
# Next to a point that nearly holds the median, and between points that are nearly on a line, steps are far too short:
# some medians of a few points in a few dimensions would need 10^5. From this one on, every eighth is made longer.
SLOW = 128
DOUBLINGS = 40
# A squared distance has a rounding error of 1e-16 of the squared distances to the origin: below 1e-14 it means nothing.
ROUNDING = 1e-14
# Points of weight w are a crowd if they are nearer to z than this times w, in units of the mean distance of z's parts
# to the origin. Around one of its own rows it is no longer a crowd: Weiszfeld's weights p_j / |z - x_j| favour near
# parts, so that distance is small.
CROWD = 0.03
NUMBERS = 1 << 23  # of a block of columns in float64, 64 MB: bounds the memory for many clients
ORIGINS = 12  # each new origin resolves seven more digits, and float32 spans 76


def medians(X: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """K geometric medians of the rows of X (N, P), weights (K, N): barycentric coordinates (K, N), residuals (K,)."""
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


def _gram(X: Tensor, origin: int | None) -> Tensor:
    """Gram matrix (N, N) of the rows around their mean, or around one row; in float64, by blocks of columns."""
    G = torch.zeros(len(X), len(X), dtype=torch.float64)
    columns = min(1 << 16, max(1, NUMBERS // len(X)))
    for block in X.split(columns, dim=1):
        block = block.to(torch.float64, copy=True)
        block -= block.mean(0) if origin is None else block[origin].clone()
        G.addmm_(block, block.mT)
    return G


def _weiszfeld(G: Tensor, p: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K weighted geometric medians of N points given by their Gram matrix G (N, N); weights p (K, N) of sum 1.

    Starts at A (K, N). Returns barycentric coordinates (K, N), residuals (K,) and the weights (K, N) of the points that
    crowd around the median, 0 for all others. The origin is too far away to tell a crowd's points apart; a crowd with
    half of the weight also ends the iteration. The step is Vardi and Zhang's (2000): it equals Weiszfeld's away from
    the points, and moves off a point that is not the median. A point is the median if the others pull on it with no
    more than its weight. The nearest point is tested for that, since steps towards it would never arrive.
    """
    for i in range(1, ITERATIONS + 1):
        distance, on, reach = _distances(A, G)
        pull, total, norm, held = _forces(p, A, distance, on, G)
        residual = (norm - held).clamp_min(0.0)
        unsettled = residual > TOLERANCE
        step = (1 - held / norm.clamp_min(1e-300)).clamp_min(0.0)
        following = torch.where(total > 0, (1 - step) * A + step * pull / total.clamp_min(1e-300), A)
        if i % 8 == 0:  # not in every step: most medians are found by then
            near = p * (distance < CROWD / 2 * reach)
            unsettled &= (near.sum(1, keepdim=True) < 0.5) | (near.count_nonzero(1).unsqueeze(1) < 2)
            point, pulled, own = _nearest_point(p, distance, G)
            if i >= SLOW:
                step = following - A
                following = (A + _longer(p, A, step, distance, G) * step).clamp_min(0.0)  # of rounding
            following = torch.where(pulled <= own + TOLERANCE, point, following)
        if not bool(unsettled.any()):
            break
        A = torch.where(unsettled, following, A)
    # A point that holds z is the median itself: z moves exactly onto it.
    A = torch.where((held > 0) & (residual <= TOLERANCE), p * on / held.clamp_min(1e-300), A)
    return A, residual.squeeze(1), _crowd(p, distance, reach)


def _longer(p: Tensor, A: Tensor, step: Tensor, distance: Tensor, G: Tensor) -> Tensor:
    """How many times as long (K, 1) the steps (K, N) from A (K, N) come to the lowest cost on their way; at least once.

    The cost is convex, so its slope grows along the way: the length is doubled while the slope there is negative, and
    the zero is between the last two lengths. distance (K, N): from A to the points.
    """
    SG = step @ G
    squared = distance**2  # and after t steps
    linear = (A * SG).sum(1, keepdim=True) - SG  # + 2 t linear
    square = (step * SG).sum(1, keepdim=True)  # + t^2 square

    def slope(t: Tensor) -> Tensor:
        away = (squared + 2 * t * linear + t * t * square).clamp_min(1e-300).sqrt()
        return (p * (linear + t * square) / away).sum(1, keepdim=True)

    t = torch.ones(len(A), 1, dtype=G.dtype)
    at = slope(t)
    for _ in range(DOUBLINGS):
        further = slope(2 * t)
        down = further < 0
        if not bool(down.any()):
            break
        t, at = torch.where(down, 2 * t, t), torch.where(down, further, at)
    # Between t and 2 t the slope is taken as a straight line. No coordinate may become negative.
    lowest = t * (1 + (at / (at - slope(2 * t)).clamp_max(-1e-300)).clamp_max(1.0))
    most = torch.where(step < 0, A / -step, torch.inf).amin(1, keepdim=True)
    return torch.where(at < 0, torch.minimum(lowest, most), 1.0)


def _nearest_point(p: Tensor, distance: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest point with a weight (K, N), how strongly the others pull on it, and its own weight (both (K, 1)).

    Points in the same place share by weight.
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
    """From the points A (K, N) to the N given points: distances (K, N), and which of them are 0 up to rounding.

    Also reach (K, 1), the scale of the rounding: the mean distance to the origin of the points that form each of A.
    """
    GA, squares = A @ G, G.diagonal()
    reach = A @ squares.sqrt().unsqueeze(1)
    squared = (A * GA).sum(1, keepdim=True) - 2 * GA + squares
    on = squared <= ROUNDING * (reach**2 + squares)
    return squared.clamp_min(0.0).sqrt(), on, reach


def _forces(p: Tensor, A: Tensor, distance: Tensor, on: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At the points A (K, N): p_j / |z - x_j| of the points that z is not on, and their sum.

    Also the norm of the gradient over those points, and the weight of the points that z is on.
    """
    pull = torch.where(on, 0.0, p / distance.clamp_min(1e-300))
    total = pull.sum(1, keepdim=True)
    gradient = total * A - pull  # sum_j pull_j (z - x_j) in barycentric coordinates; the Gram matrix gives its norm
    norm = (gradient * (gradient @ G)).sum(1, keepdim=True).clamp_min(0.0).sqrt()
    return pull, total, norm, (p * on).sum(1, keepdim=True)
