"""Keeping R orthonormal: in training, and after averaging.

Training moves R in Householder coordinates around the R of the round's start. This is the rule of torch's `orthogonal`
parametrisation, which pyreft uses. Let C (d, d - r) complete the columns of R^T to a basis. For A (d, r), strictly
lower triangular and zero at the start, v_i = e_i + A_i and tau_i = 2 / |v_i|^2,

    R(A)^T = -[R^T C] H(A),    H(A) = first r columns of (I - tau_1 v_1 v_1^T) ... (I - tau_r v_r v_r^T)

has orthonormal columns for every A, and R(0) = R. The optimiser is therefore free: no step needs a projection.
A has no meaning outside its round: a client keeps and sends R itself.

A product of reflections is I - V T V^T with T^-1 = diag(1 / tau) + the strict upper triangle of V^T V (Joffrain et al.
2006). This takes a few products of width r and never stores C. With torch's `householder_product`, the backward pass
would take most of a training step.

An average of several R is not orthonormal: `orthonormality_error` measures that, and `retract` (polar or QR) fixes it.

(Q R, Q W, Q b) is the same intervention for every orthogonal Q (r, r). An average of states that differ by such a Q
loses what the clients learned. Clients start from one R and differ little; `align` removes the difference. It is an
option and a reconstruction.
"""

import torch
from torch import Tensor

from .state import State

RETRACTIONS = ("polar", "qr", "raw")


class Rotation:
    """Coordinates A (S, d, r) for R (S, r, d) around a given R.

    complement: C (S, d, d - r), to repeat a pyreft run to the digit; the default is the one that LAPACK's QR of R^T
    implies. R(0) is R to the bit, even where R is not orthonormal ("raw").
    """

    def __init__(self, R: Tensor, complement: Tensor | None = None):
        self.R = R
        self.complement = complement
        if complement is None:
            packed, tau = torch.geqrf(R.mT)
            acts = (tau != 0).unsqueeze(-2)  # LAPACK's tau is 0 where no reflection is needed
            self.V = torch.where(acts, _unit_lower(packed), 0.0)
            self.T_inverse = _t_inverse(self.V, torch.where(tau != 0, tau, 1.0))

    def start(self) -> Tensor:
        """A = 0 (S, d, r), the coordinates of the given R."""
        return torch.zeros_like(self.R.mT)

    def __call__(self, A: Tensor) -> Tensor:
        """R(A) (S, r, d). Only the part of A (S, d, r) below the diagonal counts."""
        r = self.R.shape[-2]
        V = _unit_lower(A)
        tau = 2.0 / (V * V).sum(-2)
        M = torch.linalg.solve_triangular(_t_inverse(V, tau), V[..., :r, :].mT, upper=True)  # T V_top^T (S, r, r)
        # H(A) = E - V M with E the first r columns of I, so -[R^T C] H(A) = [R^T C] V M - R^T.
        moved = self.R.mT @ V[..., :r, :] + self._complete(V[..., r:, :])  # (S, d, r)
        return (moved @ M - self.R.mT).mT

    def _complete(self, y: Tensor) -> Tensor:
        """C y for y (S, d - r, r)."""
        if self.complement is not None:
            return self.complement @ y
        r = self.R.shape[-2]
        # C is the last d - r columns of I - V T V^T, the reflections of R^T's own QR factorisation.
        weights = torch.linalg.solve_triangular(self.T_inverse, self.V[..., r:, :].mT @ y, upper=True)
        return torch.nn.functional.pad(y, (0, 0, r, 0)) - self.V @ weights


def _unit_lower(A: Tensor) -> Tensor:
    return A.tril(-1) + torch.eye(*A.shape[-2:], dtype=A.dtype, device=A.device)


def _t_inverse(V: Tensor, tau: Tensor) -> Tensor:
    return torch.diag_embed(1.0 / tau) + (V.mT @ V).triu(1)


def retract(R: Tensor, how: str) -> Tensor:
    """Orthonormal rows near R (S, r, d): the nearest ("polar"), Gram-Schmidt's ("qr"), or R unchanged ("raw")."""
    if how == "raw":
        return R
    if how == "polar":
        U, _, Vh = torch.linalg.svd(R, full_matrices=False)
        return U @ Vh
    if how == "qr":
        Q, triangle = torch.linalg.qr(R.mT)
        sign = torch.sign(torch.diagonal(triangle, dim1=-2, dim2=-1))  # QR is unique up to these signs
        return (Q * torch.where(sign == 0, 1.0, sign).unsqueeze(-2)).mT.contiguous()
    raise ValueError(f"retraction must be one of {RETRACTIONS}, got {how!r}")


def orthonormality_error(R: Tensor) -> float:
    """max over sites of || R R^T - I ||_F: 0 for orthonormal rows."""
    gram = R @ R.mT - torch.eye(R.shape[-2], dtype=R.dtype, device=R.device)
    return float(torch.linalg.matrix_norm(gram).max())


def align(state: State, reference: State) -> State:
    """The same interventions, with R (S, r, d), W and b turned towards the reference's R; other tensors unchanged.

    For each site, Procrustes' Q brings Q R nearest to the reference R0: Q = U V^T, where R0 R^T = U S V^T.
    """
    U, _, Vh = torch.linalg.svd(reference["R"] @ state["R"].mT)
    Q = U @ Vh  # (S, r, r)
    turned = {"R": Q @ state["R"], "b": (Q @ state["b"].unsqueeze(-1)).squeeze(-1)}
    if "W" in state:
        turned["W"] = Q @ state["W"]
    return {**state, **turned}
