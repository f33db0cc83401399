"""The numbers that SecAgg+ can carry: whole multiples of a step, between -clip and clip.

A number that is on this grid already is not changed by the protocol's stochastic rounding. So clients round before it,
and the sum that comes out is that of the rounded vectors, to the bit.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..errors import FedReFTError

MODULUS = 2**32  # Flower's default: the sum of all clients' levels has to stay below it


@dataclass(frozen=True)
class Levels:
    """clip: the largest number, a power of two. count: of levels, another."""

    clip: float
    count: int

    @classmethod
    def of(cls, clients: int, clip: float = 8.0) -> Self:
        """The finest that a sum over so many clients has room for; 2^28 levels at most."""
        return cls(clip, 2 ** min(28, 31 - (clients - 1).bit_length()))

    @property
    def step(self) -> float:
        return 2 * self.clip / self.count

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest numbers on the grid, (P,) float64. Raises FedReFTError for x beyond it."""
        x = x.double()
        if not bool((x.abs() <= self.clip).all()):
            raise FedReFTError(f"a number of the update is beyond {self.clip:g}, the largest that can be summed")
        return torch.round(x / self.step) * self.step  # exact but for the rounding: the step is a power of two

    def of_mean(self, mean: Tensor, n: int) -> Tensor:
        """The sum of n vectors on the grid, exactly, from their mean."""
        return torch.round(mean * n / self.step) * self.step
