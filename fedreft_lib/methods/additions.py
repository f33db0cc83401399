"""What a state adds to the frozen model, as one matrix, and the factors of such a matrix.

    W = s B A of a linear module        W = [M, c] of a site:  h + M h + c,  for LoReFT M = R^T (W - R), c = R^T b

Groups are the parts of the names before the tensor's own: "q_proj." for each module, "" for the sites.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.state import State
from .branches import Kind, branch


def groups(state: State) -> dict[str, State]:
    """The tensors of each group under their own names."""
    names = dict.fromkeys(name.rpartition(".")[0] for name in state)
    return {f"{name}." if name else "": branch(state, name) if name else state for name in names}


def addition(kind, phi: State) -> Tensor:
    """W (places, d_out, d_in), or [M, c] (places, d, d + 1), in float64. kind: a Kind, or one that wraps it."""
    found = kind.as_map({name: tensor.double() for name, tensor in phi.items()})
    W = found["B"] @ found["A"]
    return torch.cat([W, found["c"].unsqueeze(-1)], -1) if "c" in found else W


def factors(kind: Kind, W: Tensor, rank: int) -> State:
    """The tensors of the best approximation of that rank to W, the largest singular value first."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    largest = U.gather(-2, U.abs().argmax(-2, keepdim=True))  # U and V are unique up to these signs
    sign = torch.where(largest < 0, -1.0, 1.0)
    U, S, V = (U * sign)[..., :rank], S[..., :rank], (Vh * sign.mT)[..., :rank, :]
    if kind.residual:
        R, SV = U.mT, S.unsqueeze(-1) * V
        found = {"R": R, "W": SV[..., :-1] + (R if kind.subtracts else 0), "b": SV[..., -1]}
    else:
        missing = rank - S.shape[-1]  # of a module that is narrower than the rank
        B = U * S.unsqueeze(-2) / kind.scale
        found = {"A": pad(V, (0, 0, 0, missing)), "B": pad(B, (0, missing))}
    return {name: tensor.float() for name, tensor in found.items()}


def beyond(W: Tensor, ranks: list[int]) -> list[float]:
    """The share of |W|^2 that each truncation of W (places, d_out, d_in) to a rank throws away, in percent."""
    energy = torch.linalg.svdvals(W).square().sum(0)
    return [100 * float(energy[rank:].sum() / energy.sum().clamp_min(1e-300)) for rank in ranks]
