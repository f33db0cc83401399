"""FLAME's states: several experts at each place, of which a router gives each token the best k (arXiv 2506.16600).

    s sum over the j in TopK_k(p) of p_j delta(x; expert j),    p = softmax(G x),  G (E, d_in)

p is not made to sum to 1 over the k chosen ones: a client that uses fewer experts adds less, which its factor s can
make up for. Expert j's tensors are the j-th along the second dimension, as in R (places, E, r, d). k and s (places, 1)
are a client's own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.interventions import Intervention
from ..core.state import State
from .branches import Added
from .lora import LoRA

OWN = ("k", "s")


@dataclass(frozen=True)
class Routed(Added):
    """E experts of one kind. At the start all k are E, and all s are 1."""

    kind: Intervention | LoRA
    experts: int

    @property
    def of_experts(self) -> dict[str, tuple[int, ...]]:
        """Names of the experts' tensors, and their shapes where all numbers are 1."""
        return self.kind.shapes(1, 1, *((1,) if self.kind.residual else (1, 1)))

    @property
    def rotated(self) -> tuple[str, ...]:
        return self.kind.rotated

    def shapes(self, places: int, rank: int, *dims: int) -> dict[str, tuple[int, ...]]:
        each = self.kind.shapes(places, rank, *dims)
        experts = {name: (places, self.experts, *shape[1:]) for name, shape in each.items()}
        return {**experts, "route": (places, self.experts, dims[0]), **{name: (places, 1) for name in OWN}}

    def init(self, places: int, rank: int, *dims: int, start: str, generator: torch.Generator) -> State:
        """Each expert is drawn by itself, as the kind draws; the router's numbers are small, N(0, 0.02^2)."""
        each = [self.kind.init(places, rank, *dims, start=start, generator=generator) for _ in range(self.experts)]
        route = 0.02 * torch.randn(places, self.experts, dims[0], generator=generator)
        own = {"k": torch.full((places, 1), float(self.experts)), "s": torch.ones(places, 1)}
        return {**{name: torch.stack([phi[name] for phi in each], 1) for name in each[0]}, "route": route, **own}

    def delta(self, x: Tensor, phi: State) -> Tensor:
        """What the chosen experts add to x (..., t, d_in)."""
        x = x.view_as(x)  # its gradients are added up here, in the same order for a client alone and in a cohort
        p, chosen = self.routes(x, phi)
        gate = phi["s"].unsqueeze(-1) * p * chosen  # (..., t, E)
        after = self.of_experts.items()  # counted from the end: there may be further dimensions in front
        experts = [{name: phi[name].select(-len(shape), j) for name, shape in after} for j in range(self.experts)]
        return sum(gate[..., j : j + 1] * self.kind.delta(x, expert) for j, expert in enumerate(experts))

    def routes(self, x: Tensor, phi: State) -> tuple[Tensor, Tensor]:
        """p (..., t, E) for x (..., t, d_in), and whether an expert is chosen; of equal ones the first is."""
        p = torch.softmax(x @ phi["route"].mT, dim=-1)
        place = p.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return p, place < phi["k"].unsqueeze(-1)
