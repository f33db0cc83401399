"""Interventions: small learned edits of hidden representations (ReFT, arXiv 2404.03592, section 3).

Every member has one form. For a hidden state h (d,), directions R (r, d), a map W (r, d) and an offset b (r,):

    Phi(h) = h + R^T (W h + b - R h)

and differs in which terms it has and in whether the rows of R are orthonormal:

    loreft               R orthonormal   W h   b   - R h      LoReFT, the paper's choice
    direft               R free          W h   b              DiReFT (R is W2 and W is W1 in the ReFT paper)
    noreft               R free          W h   b   - R h
    orthonormal_direft   R orthonormal   W h   b
    consreft             R orthonormal         b   - R h
    lobireft             R orthonormal         b

Checked against pyreft's classes, whose names differ: its `NodireftIntervention` is the ReFT paper's DiReFT.

A *state* phi is a dict of float32 tensors stacked over the S sites of a model: R (S, r, d), W (S, r, d), b (S, r).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from .state import State


@dataclass(frozen=True)
class Intervention:
    """One member of the family: which terms its formula has. The state itself lives outside, in a dict."""

    name: str
    orthonormal: bool  # the rows of R are kept orthonormal, in training and after aggregation
    maps: bool  # has the term W h
    subtracts: bool  # has the term - R h
    pyreft_class: str  # the class that computes the same in pyreft

    @property
    def has_identity(self) -> bool:
        """Whether some state leaves every h as it is: not so where R h is taken away and no W h can give it back."""
        return self.maps or not self.subtracts

    residual = True  # edits the residual stream, (d,) to (d,)

    @property
    def subspace(self) -> tuple[str, ...]:
        """The tensors that say *where* it edits; `map` are those that say *what* (a method may share only one)."""
        return ("R",)

    @property
    def map(self) -> tuple[str, ...]:
        return ("W", "b") if self.maps else ("b",)

    @property
    def rotated(self) -> tuple[str, ...]:
        """The tensors whose rows are kept orthonormal, in training and after aggregation."""
        return ("R",) if self.orthonormal else ()

    def shapes(self, sites: int, rank: int, d: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the trainable tensors, in the order in which they are flattened."""
        shapes = {"R": (sites, rank, d), "W": (sites, rank, d), "b": (sites, rank)}
        return {name: shape for name, shape in shapes.items() if name != "W" or self.maps}

    def init(self, sites: int, rank: int, d: int, *, start: str, generator: torch.Generator) -> State:
        """A fresh state.

        start="random" draws as pyreft does: R orthogonal, W and b uniform in +-1/sqrt(d) (torch's `Linear`), so
        Phi is *not* the identity at the first step. start="identity" sets W = R (or 0 where R h is not
        subtracted) and b = 0, so that training starts exactly at the untrained backbone.

        Raises ConfigError where a member has no identity start (consreft projects R's directions away).
        """
        bound = d**-0.5
        if self.orthonormal:
            R = torch.linalg.qr(torch.randn(sites, d, rank, generator=generator))[0].mT.contiguous()
        else:
            R = torch.empty(sites, rank, d).uniform_(-bound, bound, generator=generator)
        W = torch.empty(sites, rank, d).uniform_(-bound, bound, generator=generator)
        b = torch.empty(sites, rank).uniform_(-bound, bound, generator=generator)
        if start == "identity":
            if not self.has_identity:
                raise ConfigError(f'{self.name} has no identity start, since it removes R h: use init="random"')
            W = R.clone() if self.subtracts else torch.zeros_like(W)
            b = torch.zeros_like(b)
        phi = {"R": R, "W": W, "b": b}
        return {name: phi[name] for name in self.shapes(sites, rank, d)}

    def edit(self, h: Tensor, phi: State) -> Tensor:
        """Phi(h) for h (..., n, d) and the tensors of one site, R (..., r, d), W (..., r, d), b (..., r).

        Computed in the state's precision, returned in that of h. Leading dimensions broadcast, so rows of a
        batch may each be steered by their own state.
        """
        x = h.to(phi["R"].dtype)
        return (x + self.delta(x, phi)).to(h.dtype)

    def delta(self, x: Tensor, phi: State) -> Tensor:
        """What the edit adds to x (..., n, d), in the precision of both."""
        R = phi["R"]
        b = phi["b"].unsqueeze(-2)  # (..., 1, r)
        if self.maps:
            return (x @ self._map(phi).mT + b) @ R
        return (b - x @ R.mT if self.subtracts else b) @ R

    def _map(self, phi: State) -> Tensor:
        # W - R is formed first: at the identity start the edit is then exactly zero, not a rounding error.
        return phi["W"] - phi["R"] if self.subtracts else phi["W"]

    def as_map(self, phi: State) -> State:
        """The edit as x -> B A x + c (a LoRA on the residual stream, with an offset):

        A (..., r, d), B (..., d, r), c (..., d).
        """
        A = self._map(phi) if self.maps else -phi["R"] if self.subtracts else torch.zeros_like(phi["R"])
        return {"A": A, "B": phi["R"].mT, "c": (phi["b"].unsqueeze(-2) @ phi["R"]).squeeze(-2)}


LoReFT = Intervention("loreft", orthonormal=True, maps=True, subtracts=True, pyreft_class="LoreftIntervention")
DiReFT = Intervention("direft", orthonormal=False, maps=True, subtracts=False, pyreft_class="NodireftIntervention")
INTERVENTIONS = {
    each.name: each
    for each in (
        LoReFT,
        DiReFT,
        Intervention("noreft", orthonormal=False, maps=True, subtracts=True, pyreft_class="NoreftIntervention"),
        Intervention(
            "orthonormal_direft", orthonormal=True, maps=True, subtracts=False, pyreft_class="DireftIntervention"
        ),
        Intervention("consreft", orthonormal=True, maps=False, subtracts=True, pyreft_class="ConsreftIntervention"),
        Intervention("lobireft", orthonormal=True, maps=False, subtracts=False, pyreft_class="LobireftIntervention"),
    )
}
