"""A mixture: n members of one kind at one place, whose edits are added in an item's own shares.

    delta(x) = sum_m share_m delta_m(x)

FedIns's pool of instances and FedGMM's learners are mixtures. A member's tensors carry its name: "m1.R", "m2.W". Each
member has its own R, and the edits are what is mixed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.state import State
from ..model.encoding import Encoded
from ..model.scoring import item_losses
from ..model.steered import SteeredModel
from .branches import Branches, branch, named


@dataclass(frozen=True)
class Mixture(Branches):
    """`members` members. phi["share"] (..., n) has each row's shares; without it all members have 1 / n."""

    members: int = 1

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(f"m{i + 1}" for i in range(self.members))

    def init(self, places: int, rank: int, *dims: int, start: str, generator: torch.Generator) -> State:
        """Each member is drawn by itself: members that begin alike and see the same items stay alike."""
        drawn = {m: self.kind.init(places, rank, *dims, start=start, generator=generator) for m in self.branches}
        return {full: tensor for m, phi in drawn.items() for full, tensor in named(m, phi).items()}

    def delta(self, x: Tensor, phi: State) -> Tensor:
        added = [self.kind.delta(x, branch(phi, m)) for m in self.branches]
        if "share" not in phi:
            return sum(added) / self.members
        return sum(share * each for share, each in zip(phi["share"].split(1, -1), added, strict=True))


def alone(items: int, member: int, members: int) -> Tensor:
    """Shares (items, members) that are all one member's (from 0)."""
    return torch.eye(members)[member].expand(items, -1)


def losses_of_members(model: SteeredModel, state: State, data: Encoded, batch_size: int) -> Tensor:
    """The loss (items, members) of each item under each member alone, in float64: the sum over its answer's tokens."""
    n = len(model.adapter.kind.branches)
    each = [item_losses(model, state, data, batch_size, alone(len(data), member, n)) for member in range(n)]
    return torch.stack(each, 1).double()
