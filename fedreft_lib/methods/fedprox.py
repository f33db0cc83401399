"""FedProx (Li et al. 2020): FedAvg whose clients stay near their state at the round's start.

The local loss adds mu / 2 times the squared distance to it, over R, W, b themselves (A, B for LoRA). mu = 0 is FedAvg.
"""

from collections.abc import Sequence

from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..core.training import Penalty
from .method import Method, weighted_mean


def proximal(config: RunConfig) -> Penalty | None:
    def near_the_start(phi: State, start: State, moving: Sequence[str], step: int, steps: int) -> Tensor:
        return config.proximal_mu / 2 * sum((phi[name] - start[name]).square().sum() for name in moving)

    return near_the_start if config.proximal_mu else None


FEDPROX = Method(
    "fedprox",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    penalty=proximal,
)
