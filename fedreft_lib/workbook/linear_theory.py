"""Why FedAvg's state is a good start for fine-tuning: linear models, with exact gradients (Collins et al. 2022).

Client i of M has the target y = <B* w*_i, x> with x ~ N(0, I). It fits (B w)^T x by E gradient steps a round on

    f_i(B, w) = 1/2 |B w - B* w*_i|^2,    B (d, k), w (k,)

and the server averages B and w. Where w_is is client i's w before step s, a round obeys

    (I - P*) B' = (I - P*) B mean_i prod_s (I - alpha w_is w_is^T),    P* the projection onto col(B*).

With E = 1 all w_i1 are equal, so B never leaves col[B, B* mean w*] of its start. With E >= 2 they differ, and where the
w*_i span k dimensions, what B has outside col(B*) shrinks. The paper proves it for its own start: B = Q / sqrt(alpha)
with orthonormal Q, and w = 0. From others it may fail.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rounds(
    B: Array, w: Array, B_star: Array, w_star: Array, *, alpha: float, steps: int
) -> Iterator[tuple[Array, Array]]:
    """The averages (B, w) before the first round and after each, without end. w_star (M, k): a row for each client."""
    while True:
        yield B, w
        states = [_local(B, w, B_star @ own, alpha, steps) for own in w_star]
        B, w = (np.mean(each, axis=0) for each in zip(*states, strict=True))


def _local(B: Array, w: Array, target: Array, alpha: float, steps: int) -> tuple[Array, Array]:
    for _ in range(steps):
        error = B @ w - target
        B, w = B - alpha * np.outer(error, w), w - alpha * B.T @ error
    return B, w


def papers_start(Q: Array, alpha: float) -> tuple[Array, Array]:
    """B and w before the first round, for orthonormal columns Q (d, k)."""
    return Q / np.sqrt(alpha), np.zeros(Q.shape[1])


def distance(B: Array, B_star: Array) -> float:
    """The sine of the largest principal angle between col(B) and col(B*): 0 where they are one, at most 1."""
    Q, Q_star = (np.linalg.qr(each)[0] for each in (B, B_star))
    return float(np.linalg.norm(Q - Q_star @ (Q_star.T @ Q), 2))
