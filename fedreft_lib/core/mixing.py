"""Mixing: X' = (1 - lam) X + lam A X, and how the mixing weight lam is set.

fixed       one number for all rounds and clients
scheduled   linear from the first round to the last
adaptive    each client tries a grid of candidates by forward passes on its own held-out items and keeps the best. A
            reconstruction, after the test-time compute that the paper's second version names
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def mix(X: Tensor, A: Tensor, mixing: float | Tensor) -> Tensor:
    """(1 - lam) X + lam A X, (N, P). mixing: one lam, or one per client (N,), in [0, 1]."""
    return mix_with(X, A.to(X.dtype) @ X, mixing)


def mix_with(X: Tensor, received: Tensor, mixing: float | Tensor) -> Tensor:
    """(1 - lam) X + lam received, (N, P): the client's side of `mix`. Raises ValueError for lam outside [0, 1]."""
    lam = torch.as_tensor(mixing, dtype=X.dtype).expand(len(X)).unsqueeze(1)
    if not bool(((lam >= 0) & (lam <= 1)).all()):
        raise ValueError(f"mixing must be in [0, 1], got {mixing}")
    return (1 - lam) * X + lam * received


def mixing_matrix(A: Tensor, mixing: float | Tensor) -> Tensor:
    """The mixing matrix M = (1 - lam) I + lam A, (N, N)."""
    return mix(torch.eye(len(A), dtype=A.dtype), A, mixing)


def scheduled(first: float, last: float, round: int, rounds: int) -> float:
    """lam of a round (from 1), on a line from `first` in the first round to `last` in the last."""
    return first if rounds < 2 else first + (last - first) * (round - 1) / (rounds - 1)


def adaptive(
    grid: Sequence[float], clients: int, held_out_loss: Callable[[int, float], float]
) -> tuple[Tensor, Tensor]:
    """Each client's best candidate (N,), and the held-out losses of all candidates (N, candidates).

    held_out_loss(client, lam): the loss of the state that lam would give. The smaller lam wins a tie.
    """
    candidates = sorted(set(grid))
    losses = torch.tensor([[held_out_loss(k, lam) for lam in candidates] for k in range(clients)], dtype=torch.float64)
    chosen = [candidates[i] for i in losses.nan_to_num(nan=torch.inf).argmin(1).tolist()]
    return torch.tensor(chosen, dtype=torch.float64), losses
