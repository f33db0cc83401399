"""The numbers that SecAgg+ can sum: whole multiples of a step, between -clip and clip.

The protocol's stochastic rounding does not change a number on this grid. So clients round first, and the result is the
sum of the rounded vectors, to the bit.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..errors import FedReFTError

MODULUS = 2**32  # Flower's default: the sum of all clients' levels must stay below it


@dataclass(frozen=True)
class Levels:
    """clip: the largest number. count: the number of levels. Both are powers of two."""

    clip: float
    count: int

    @classmethod
    def of(cls, clients: int, clip: float = 8.0) -> Self:
        """The finest levels for a sum over so many clients; at most 2^28."""
        return cls(clip, 2 ** min(28, 31 - (clients - 1).bit_length()))

    @property
    def step(self) -> float:
        return 2 * self.clip / self.count

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest numbers on the grid, (P,) float64. Raises FedReFTError for numbers above `clip` in size."""
        x = x.double()
        if not bool((x.abs() <= self.clip).all()):
            raise FedReFTError(f"a number of the update is beyond {self.clip:g}, the largest that can be summed")
        return torch.round(x / self.step) * self.step  # only `round` is inexact: the step is a power of two

    def of_mean(self, mean: Tensor, n: int) -> Tensor:
        """The sum of n vectors on the grid, exactly, from their mean."""
        return torch.round(mean * n / self.step) * self.step
