"""States with several branches at one place, which some federated methods need. Each wraps a kind of state:

    Gated(kind)     g_rest(x) delta(x; rest) + g_own(x) delta(x; own)      FedALT: a router weighs others against own
    Blend(kind)     a delta(x; local) + (1 - a) delta(x; global)           FedDPA: a is a number, or one for each row
    Stacked(kind)   the frozen edits of earlier rounds, then delta(x)      FLoRA: one more slot each round

A branch's tensors carry its name: "own.R", "rest.W". All branches have the same start, the kind's own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.interventions import Intervention
from ..core.state import State
from .lora import LoRA, SmallLoReFT

Kind = Intervention | LoRA | SmallLoReFT


def branch(phi: State, name: str) -> State:
    """The tensors of one branch under their own names."""
    return {full.removeprefix(f"{name}."): tensor for full, tensor in phi.items() if full.startswith(f"{name}.")}


def named(name: str, phi: dict) -> dict:
    """The inverse of `branch`."""
    return {f"{name}.{tensor}": value for tensor, value in phi.items()}


class Added:
    """States whose edit of a hidden state adds `delta` to it."""

    def edit(self, h: Tensor, phi: State) -> Tensor:
        """h + delta(h). Computes in float32, returns h's precision."""
        x = h.to(torch.float32)
        return (x + self.delta(x, phi)).to(h.dtype)


@dataclass(frozen=True)
class Branches(Added):
    """The common part of the three."""

    kind: Kind
    branches = ()

    @property
    def rotated(self) -> tuple[str, ...]:
        return tuple(f"{name}.{tensor}" for name in self.branches for tensor in self.kind.rotated)

    def shapes(self, places: int, rank: int, *dims: int) -> dict[str, tuple[int, ...]]:
        each = self.kind.shapes(places, rank, *dims)
        return {full: shape for name in self.branches for full, shape in named(name, each).items()}

    def init(self, places: int, rank: int, *dims: int, start: str, generator: torch.Generator) -> State:
        phi = self.kind.init(places, rank, *dims, start=start, generator=generator)  # one start for all branches
        return {full: tensor.clone() for name in self.branches for full, tensor in named(name, phi).items()}


@dataclass(frozen=True)
class Gated(Branches):
    """Two branches. A router (2, d_in) weighs them at each token by a softmax without offset; both start at 0.5."""

    branches = ("rest", "own")

    def shapes(self, places: int, rank: int, *dims: int) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(places, rank, *dims), "route": (places, 2, dims[0])}

    def init(self, places: int, rank: int, *dims: int, start: str, generator: torch.Generator) -> State:
        phi = super().init(places, rank, *dims, start=start, generator=generator)
        return {**phi, "route": torch.zeros(places, 2, dims[0])}

    def delta(self, x: Tensor, phi: State) -> Tensor:
        gate = torch.softmax(x @ phi["route"].mT, dim=-1)  # (..., 2)
        rest, own = (self.kind.delta(x, branch(phi, name)) for name in self.branches)
        return gate[..., :1] * rest + gate[..., 1:] * own


@dataclass(frozen=True)
class Blend(Branches):
    """Two branches in fixed shares: the local one has `share`, unless phi["share"] gives each row its own."""

    share: float = 0.5
    branches = ("global", "local")

    def delta(self, x: Tensor, phi: State) -> Tensor:
        share = phi.get("share", self.share)
        shared, local = (self.kind.delta(x, branch(phi, name)) for name in self.branches)
        return share * local + (1 - share) * shared


@dataclass(frozen=True)
class Stacked(Branches):
    """A fresh branch on top of one frozen slot per round, which holds the edits of all clients side by side.

    stack.A (rounds, clients r, d_in), stack.B (rounds, d_out, clients r) and, for edits of the residual stream,
    stack.c (rounds, d_out). Empty slots are zero. On the residual stream a slot edits the output of the slots before
    it, as in training; in a linear module all slots read the same input.
    """

    rounds: int = 1
    clients: int = 1
    branches = ("fresh",)

    def shapes(self, places: int, rank: int, *dims: int) -> dict[str, tuple[int, ...]]:
        d_in, d_out = dims[0], dims[-1]
        stack = {
            "stack.A": (places, self.rounds, self.clients * rank, d_in),
            "stack.B": (places, self.rounds, d_out, self.clients * rank),
        }
        if self.kind.residual:
            stack["stack.c"] = (places, self.rounds, d_out)
        return {**super().shapes(places, rank, *dims), **stack}

    def init(self, places: int, rank: int, *dims: int, start: str, generator: torch.Generator) -> State:
        phi = super().init(places, rank, *dims, start=start, generator=generator)
        return {name: phi.get(name, torch.zeros(shape)) for name, shape in self.shapes(places, rank, *dims).items()}

    def delta(self, x: Tensor, phi: State) -> Tensor:
        fresh = branch(phi, "fresh")
        slots = list(zip(phi["stack.A"].unbind(-3), phi["stack.B"].unbind(-3), strict=True))
        if not self.kind.residual:
            return sum((x @ A.mT) @ B.mT for A, B in slots) + self.kind.delta(x, fresh)
        y = x
        for (A, B), c in zip(slots, phi["stack.c"].unbind(-2), strict=True):
            y = y + (y @ A.mT) @ B.mT + c.unsqueeze(-2)
        return (y - x) + self.kind.delta(y, fresh)
