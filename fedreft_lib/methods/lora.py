"""LoRA: low-rank additions to frozen linear modules (Hu et al. 2021). The federated baselines train it.

    y = W x + s B A x,    A (r, d_in), B (d_out, r), s = alpha / r

for every token, in the modules that `targets` names. We do not use an adapter library: each call passes a client's
state, and states must stack like those of interventions: A (L, r, d_in), B (L, d_out, r) for the L layers of one
target. Tests compare it with huggingface's peft.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.state import State


@dataclass(frozen=True)
class LoRA:
    """y = W x + s B A x. A is drawn as in peft, and B is zero: training starts at the untrained backbone."""

    scale: float
    name = "lora"
    residual = False
    subspace = ("A",)
    map = ("B",)
    rotated = ()

    def shapes(self, places: int, rank: int, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        return {"A": (places, rank, d_in), "B": (places, d_out, rank)}

    def init(self, places: int, rank: int, d_in: int, d_out: int, *, start: str, generator: torch.Generator) -> State:
        """start="identity": B = 0. start="random": B is drawn like A, so the start is not the backbone."""
        A = torch.empty(places, rank, d_in).uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator)
        B = torch.zeros(places, d_out, rank)
        if start == "random":
            B.uniform_(-(rank**-0.5), rank**-0.5, generator=generator)
        return {"A": A, "B": B}

    def delta(self, x: Tensor, phi: State) -> Tensor:
        """s B A x for x (..., d_in), in the precision of both."""
        return self.scale * ((x @ phi["A"].mT) @ phi["B"].mT)

    def as_map(self, phi: State) -> State:
        """`delta` as B A x: A (..., r, d_in), and B (..., d_out, r) times the scale."""
        return {"A": phi["A"], "B": self.scale * phi["B"]}


@dataclass(frozen=True)
class SmallLoRA(LoRA):
    """LoRA-SB (arXiv 2411.19557): y = W x + s B S A x, where A and B are frozen and only S (r, r) is trained.

    Fed-SB calls S "R"; here R is LoReFT's. methods/fedsb.py computes A, B and S for the start; `init` draws A and B
    at random, with S = 0.
    """

    name = "small_lora"
    subspace = ("A", "B")
    map = ("S",)

    def shapes(self, places: int, rank: int, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(places, rank, d_in, d_out), "S": (places, rank, rank)}

    def init(self, places: int, rank: int, d_in: int, d_out: int, *, start: str, generator: torch.Generator) -> State:
        phi = super().init(places, rank, d_in, d_out, start="random", generator=generator)
        return {**phi, "S": torch.zeros(places, rank, rank)}

    def delta(self, x: Tensor, phi: State) -> Tensor:
        return self.scale * ((x @ phi["A"].mT) @ phi["S"].mT @ phi["B"].mT)

    def as_map(self, phi: State) -> State:
        return {"A": phi["A"], "B": self.scale * (phi["B"] @ phi["S"])}


@dataclass(frozen=True)
class SmallLoReFT:
    """ReFT-SB, a reconstruction: Fed-SB's idea over LoReFT. h + R^T (S V h + b - R h), where R and V are frozen.

    V (r, d) equals R. The identity start has S = I and b = 0. Only S (r, r) and b (r,) are trained and sent.
    """

    name = "small_loreft"
    residual = True
    subspace = ("R", "V")
    map = ("S", "b")
    rotated = ()  # R stays orthonormal, since it is frozen

    def shapes(self, places: int, rank: int, d: int) -> dict[str, tuple[int, ...]]:
        return {"R": (places, rank, d), "V": (places, rank, d), "S": (places, rank, rank), "b": (places, rank)}

    def init(self, places: int, rank: int, d: int, *, start: str, generator: torch.Generator) -> State:
        R = torch.linalg.qr(torch.randn(places, d, rank, generator=generator))[0].mT.contiguous()
        S = torch.eye(rank).repeat(places, 1, 1)
        if start == "random":
            S = torch.empty(places, rank, rank).uniform_(-(rank**-0.5), rank**-0.5, generator=generator)
        return {"R": R, "V": R.clone(), "S": S, "b": torch.zeros(places, rank)}

    def delta(self, x: Tensor, phi: State) -> Tensor:
        return ((x @ phi["V"].mT) @ phi["S"].mT - x @ phi["R"].mT + phi["b"].unsqueeze(-2)) @ phi["R"]

    def as_map(self, phi: State) -> State:
        c = (phi["b"].unsqueeze(-2) @ phi["R"]).squeeze(-2)
        return {"A": phi["S"] @ phi["V"] - phi["R"], "B": phi["R"].mT, "c": c}

    def edit(self, h: Tensor, phi: State) -> Tensor:
        """Phi(h). Computes in the state's precision, returns h's."""
        x = h.to(phi["R"].dtype)
        return (x + self.delta(x, phi)).to(h.dtype)
