"""The mixing weight lam: how much of what it receives a client takes in.

fixed       one number, all rounds, all clients
scheduled   linear between the two ends of `mixing_range` over the rounds
adaptive    each client tries a grid of candidates by forward passes on its own held-out questions and keeps the
            best: in the spirit of the test-time compute that the paper's second version names; a reconstruction
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .config import RunConfig


def scheduled(config: RunConfig, round: int) -> float:
    """lam of a round (from 1) under mixing="scheduled"."""
    first, last = config.mixing_range
    return first if config.rounds < 2 else first + (last - first) * (round - 1) / (config.rounds - 1)


def adaptive(
    grid: Sequence[float], clients: int, held_out_loss: Callable[[int, float], float]
) -> tuple[Tensor, Tensor]:
    """Each client's best candidate (N,), and the held-out losses that decided it (N, candidates).

    held_out_loss(client, lam): of the state that the client would have. Of equal losses the smaller lam wins.
    """
    candidates = sorted(set(grid))
    losses = torch.tensor([[held_out_loss(k, lam) for lam in candidates] for k in range(clients)], dtype=torch.float64)
    chosen = [candidates[i] for i in losses.nan_to_num(nan=torch.inf).argmin(1).tolist()]
    return torch.tensor(chosen, dtype=torch.float64), losses
