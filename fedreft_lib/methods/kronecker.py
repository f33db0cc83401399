"""ALoRE's states: an edit of high rank from few numbers, as a sum of Kronecker products (arXiv 2412.08341).

    D = sum_i S_i (x) (P_i Q_i),  i = 1..n        S_i (n, n), P_i (d_out / n, r), Q_i (r, d_in / n)

    on the residual stream    h + D h + c         c (d,) is an offset, as LoReFT's R^T b is one
    in a linear module        W x + s D x         s as in LoRA

There are n^3 + (d_in + d_out) r numbers, and the rank is up to n^2 r, since D is a product of two block matrices:

    D = B A,    A = [I (x) Q_1; ...; I (x) Q_n],    B = [S_1 (x) P_1, ..., S_n (x) P_n]

It is computed as this product. With n = 1 and S = 1 it is LoRA: B is P, and A is Q.

The paper has square D alone, and merges it as (I + D) W. Reconstructions: s D is added to W as LoRA's product is, which
gives a form to modules with d_in != d_out; the offset; and the draws of the start. There is no R: nothing is retracted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.interventions import Intervention
from ..core.state import State
from ..errors import ConfigError
from .lora import LoRA


@dataclass(frozen=True)
class Kronecker:
    """n blocks at the places of `kind`: those of the residual stream, or linear modules."""

    kind: Intervention | LoRA
    blocks: int
    rotated = ()

    def shapes(self, places: int, rank: int, *dims: int) -> dict[str, tuple[int, ...]]:
        """Raises ConfigError where the blocks do not divide a width."""
        n, (d_in, d_out) = self.blocks, (dims[0], dims[-1])
        if d_in % n or d_out % n:
            raise ConfigError(f"alore_blocks must divide the widths {d_in} and {d_out} of what it edits, got {n}")
        shapes = {"S": (places, n, n, n), "P": (places, n, d_out // n, rank), "Q": (places, n, rank, d_in // n)}
        return {**shapes, "c": (places, d_out)} if self.kind.residual else shapes

    def init(self, places: int, rank: int, *dims: int, start: str, generator: torch.Generator) -> State:
        """All uniform in +-1/sqrt(columns), as LoRA's factors. start="identity": Q = 0 and c = 0, so D = 0."""
        phi = {
            name: torch.empty(shape).uniform_(-(shape[-1] ** -0.5), shape[-1] ** -0.5, generator=generator)
            for name, shape in self.shapes(places, rank, *dims).items()
        }
        return phi if start == "random" else {n: torch.zeros_like(x) if n in ("Q", "c") else x for n, x in phi.items()}

    def edit(self, h: Tensor, phi: State) -> Tensor:
        """h + D h + c. Computes in the state's precision, returns h's."""
        x = h.to(phi["S"].dtype)
        return (x + self.delta(x, phi)).to(h.dtype)

    def delta(self, x: Tensor, phi: State) -> Tensor:
        """What the edit adds to x (..., t, d_in), in the precision of both."""
        found = self.as_map(phi)
        D = (x @ found["A"].mT) @ found["B"].mT  # (..., t, d_out)
        return D + phi["c"].unsqueeze(-2) if self.kind.residual else D

    def as_map(self, phi: State) -> State:
        """`delta` as B A x + c: A (..., n n r, d_in), B (..., d_out, n n r) times the scale, perhaps c."""
        S, P, Q = phi["S"], phi["P"], phi["Q"]
        A = torch.einsum("ab,...irm->...iarbm", torch.eye(self.blocks).to(Q), Q)
        B = torch.einsum("...iab,...imr->...amibr", S, P)
        found = {"A": A.flatten(-2).flatten(-4, -2), "B": B.flatten(-3).flatten(-3, -2)}
        return {**found, "c": phi["c"]} if self.kind.residual else {**found, "B": self.kind.scale * found["B"]}
