"""LoRA-FAIR (Bian et al., ICCV 2025, arXiv 2411.14961): corrects the mean of B, since a product of means is no mean.

With the means A, B and the clients' mean addition dW = sum_k p_k B_k A_k, the server answers A and B + dB, where dB
minimises |dW - (B + dB) A|^2 + lam |dB|^2:

    dB = (dW - B A) A^T (A A^T + lam I)^-1

Reconstruction: the Frobenius norm and so a closed form; the paper maximises a cosine by gradient steps, on a server
that needs no data either. A large lam is FedIT; lam = 0 leaves what no B can mend, dW's part outside A's rows. A and
the scale of LoRA are not touched, and lam is relative to B before that scale.

Over LoReFT (reconstruction) a client adds R_k^T [W_k - R_k, b_k] [h; 1]. With R, the retracted mean, in the place of A
and [W - R, b] in that of B^T the rule is the same, and it corrects W and b.
"""

import torch
from torch import Tensor

from ..core.aggregation import Aggregate
from ..core.rotation import retract
from ..core.state import State
from .lora import LoRA
from .method import Method, Sent, ending, weighted_mean


def correction(A: Tensor, C: Tensor, parts: list[tuple[float, Tensor, Tensor]], lam: float) -> Tensor:
    """argmin over D of |sum_k p_k A_k^T C_k - A^T (C + D)|^2 + lam |D|^2, for parts (p_k, A_k, C_k).

    All A are (..., r, d), all C and D (..., r, m), in float64. Where lam = 0 and A has no full rank: the smallest D.
    """
    gram = A @ A.mT  # (..., r, r); nothing here is d x m
    towards = sum(p * (A @ A_k.mT) @ C_k for p, A_k, C_k in parts) - gram @ C
    penalised = gram + lam * torch.eye(A.shape[-2], dtype=A.dtype)
    return torch.linalg.lstsq(penalised, towards, driver="gelsd").solution


def corrected(sent: Sent, aggregate: Aggregate) -> list[State]:
    """One answer for all: the means, where B, or W and b, are corrected."""
    config, mean = sent.config, sent.spec.named(aggregate.aggregate[0])
    shares = (sent.weights.double() / sent.weights.sum()).tolist()
    states = [{n: x.double() for n, x in sent.spec.named(row).items()} for row in sent.X]
    answer, (first,) = dict(mean), sent.kind.subspace
    for group in (name.removesuffix(first) for name in ending(mean, first)):
        if isinstance(sent.kind, LoRA):
            A, C = mean[f"{group}A"].double(), mean[f"{group}B"].double().mT
            parts = [(p, s[f"{group}A"], s[f"{group}B"].mT) for p, s in zip(shares, states, strict=True)]
            answer[f"{group}B"] = (C + correction(A, C, parts, config.fair_lambda)).mT.float().contiguous()
        else:
            A = retract(mean["R"], config.retraction).double()  # as every client will have it
            C = _affine(A, mean["W"].double(), mean["b"].double())
            parts = [(p, s["R"], _affine(s["R"], s["W"], s["b"])) for p, s in zip(shares, states, strict=True)]
            D = correction(A, C, parts, config.fair_lambda)  # (places, r, d + 1)
            answer["W"] = (mean["W"] + D[..., :-1]).float()
            answer["b"] = (mean["b"] + D[..., -1]).float()
    return [answer for _ in states]


def _affine(R: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """[W - R, b], (..., r, d + 1)."""
    return torch.cat([W - R, b.unsqueeze(-1)], dim=-1)


LORAFAIR = Method("lorafair", aggregate=weighted_mean, mixing=lambda config: 1.0, one_for_all=True, answer=corrected)
