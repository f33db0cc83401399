"""FedProx (Li et al. 2020): FedAvg whose clients stay near their state at the round's start.

The local loss adds mu / 2 times the squared distance to it, over R, W, b themselves (A, B for LoRA). mu = 0 is FedAvg.
"""

from collections.abc import Sequence

from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..core.training import Penalty
from .method import Method, weighted_mean


def distance(mu: float, phi: State, start: State, moving: Sequence[str]) -> Tensor:
    """mu / 2 |phi - start|^2 over the tensors of these names."""
    return mu / 2 * sum((phi[name] - start[name]).square().sum() for name in moving)


def proximal(config: RunConfig) -> Penalty | None:
    def near_the_start(phi: State, start: State, moving: Sequence[str], step: int, steps: int) -> Tensor:
        return distance(config.proximal_mu, phi, start, moving)

    return near_the_start if config.proximal_mu else None


FEDPROX = Method(
    "fedprox",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    penalty=proximal,
)
