"""Scale and shift of the residual stream: h * s + b, with s and b (d,) at each site.

RED (arXiv 2402.15179) edits hidden states so, and SSF (arXiv 2210.08823) the outputs of a vision model's parts. It has
no rank, and no directions that stay orthonormal. It is the form of FedIns's instances.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.state import State

SPREAD = 0.02  # of the random start, SSF's


@dataclass(frozen=True)
class Scale:
    """h * s + b. The identity start has s = 1 and b = 0; the random one is SPREAD around it."""

    name = "scale"
    residual = True
    rotated = ()

    def shapes(self, places: int, rank: int, d: int) -> dict[str, tuple[int, ...]]:
        return {"s": (places, d), "b": (places, d)}

    def init(self, places: int, rank: int, d: int, *, start: str, generator: torch.Generator) -> State:
        s, b = torch.ones(places, d), torch.zeros(places, d)
        if start == "random":
            s, b = (each + SPREAD * torch.randn(places, d, generator=generator) for each in (s, b))
        return {"s": s, "b": b}

    def delta(self, x: Tensor, phi: State) -> Tensor:
        return x * (phi["s"] - 1).unsqueeze(-2) + phi["b"].unsqueeze(-2)
