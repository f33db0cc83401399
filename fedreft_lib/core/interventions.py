"""Interventions: small learned edits of hidden states (ReFT, arXiv 2404.03592, section 3).

All have one form. For a hidden state h (d,), directions R (r, d), a map W (r, d) and an offset b (r,):

    Phi(h) = h + R^T (W h + b - R h)

They differ in their terms, and in whether the rows of R are orthonormal:

    loreft               R orthonormal   W h   b   - R h      LoReFT, the paper's choice
    direft               R free          W h   b              DiReFT (the ReFT paper's W2 is R, its W1 is W)
    noreft               R free          W h   b   - R h
    orthonormal_direft   R orthonormal   W h   b
    consreft             R orthonormal         b   - R h
    lobireft             R orthonormal         b

A *state* phi is a dict of float32 tensors, stacked over the S sites of a model: R (S, r, d), W (S, r, d), b (S, r).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from .state import State


@dataclass(frozen=True)
class Intervention:
    """One member of the family: the terms of its formula. The state is kept outside, in a dict."""

    name: str
    orthonormal: bool  # the rows of R are kept orthonormal, in training and after aggregation
    maps: bool  # has the term W h
    subtracts: bool  # has the term - R h
    pyreft_class: str  # the class of pyreft that computes the same; its names differ from the ReFT paper's

    @property
    def has_identity(self) -> bool:
        """Whether some state leaves every h unchanged. None does where R h is removed and no W h can restore it."""
        return self.maps or not self.subtracts

    residual = True  # edits the residual stream, (d,) to (d,)

    @property
    def subspace(self) -> tuple[str, ...]:
        """The tensors that set *where* it edits; those of `map` set *what*. A method may share only one group."""
        return ("R",)

    @property
    def map(self) -> tuple[str, ...]:
        return ("W", "b") if self.maps else ("b",)

    @property
    def rotated(self) -> tuple[str, ...]:
        """The tensors whose rows are kept orthonormal, in training and after aggregation."""
        return ("R",) if self.orthonormal else ()

    def shapes(self, sites: int, rank: int, d: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the trainable tensors, in the order of the flat row."""
        shapes = {"R": (sites, rank, d), "W": (sites, rank, d), "b": (sites, rank)}
        return {name: shape for name, shape in shapes.items() if name != "W" or self.maps}

    def init(self, sites: int, rank: int, d: int, *, start: str, generator: torch.Generator) -> State:
        """A new state.

        start="random" draws as pyreft does: an orthonormal R, all else uniform in +-1/sqrt(d) (as torch's `Linear`).
        Phi is then *not* the identity at the first step. start="identity" sets W = R (or 0 where R h is not
        subtracted) and b = 0: training starts exactly at the untrained backbone.

        Raises ConfigError where no identity start exists (consreft removes R's directions from h).
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
        """Phi(h) for h (..., n, d) and the tensors of one site: R (..., r, d), W (..., r, d), b (..., r).

        Computes in the state's precision, returns h's. Leading dimensions broadcast: each row may have its own state.
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
        # W - R comes first: the identity start then edits by exactly zero, not by a rounding error.
        return phi["W"] - phi["R"] if self.subtracts else phi["W"]

    def as_map(self, phi: State) -> State:
        """`delta` as B A x + c (LoRA with an offset): A (..., r, d), B (..., d, r), c (..., d)."""
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
