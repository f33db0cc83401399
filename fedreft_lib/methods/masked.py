"""States of which each client has only a part: the rows of its rank, or the places in its layers.

    delta = sum_j live_j (what row j of the r adds),    live (places, r) of 0 and 1

`live` is a frozen tensor of the client's own state: `Method.start` sets it, and it is neither trained nor sent. A row
that is not live has a gradient of exactly zero, so AdamW without decay leaves it as it was. For an orthonormal R that
holds of its coordinates: its dead rows still turn with the live ones, and dead rows that stand last turn no live one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.state import State
from .branches import Added, Kind
from .method import Names, ending

LIVE = "live"


def but_live(names: Names, *_) -> tuple[str, ...]:
    """The tensors that are trained and sent."""
    return tuple(name for name in names if name not in ending(names, LIVE))


@dataclass(frozen=True)
class Masked(Added):
    """A kind with `live`. It masks R or A alone: every product of a row has it as a factor."""

    kind: Kind

    @property
    def rotated(self) -> tuple[str, ...]:
        return self.kind.rotated

    def shapes(self, places: int, rank: int, *dims: int) -> dict[str, tuple[int, ...]]:
        return {**self.kind.shapes(places, rank, *dims), LIVE: (places, rank)}

    def init(self, places: int, rank: int, *dims: int, start: str, generator: torch.Generator) -> State:
        phi = self.kind.init(places, rank, *dims, start=start, generator=generator)
        return {**phi, LIVE: torch.ones(places, rank)}

    def delta(self, x: Tensor, phi: State) -> Tensor:
        return self.kind.delta(x, self._masked(phi))

    def as_map(self, phi: State) -> State:
        return self.kind.as_map(self._masked(phi))

    def _masked(self, phi: State) -> State:
        rest = {name: tensor for name, tensor in phi.items() if name != LIVE}
        return {**rest, **{name: phi[name] * phi[LIVE].unsqueeze(-1) for name in self.kind.subspace}}
