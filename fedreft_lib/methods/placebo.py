"""A placebo for mixing: after each round a client goes back towards the common start by a share lam. Reconstruction.

    phi_k <- (1 - lam) phi_k + lam phi_start

It learns nothing from anybody. Mixing does two things: it brings in what the others learned, and it shortens what a
client learned alone. The placebo does the second only, so a gain that it reaches as well is no gain by listening.
Messages go as in FedReFT, and what is received is not used.
"""

import torch

from ..config import RunConfig
from ..core.aggregation import Aggregate
from ..core.state import Layout, State
from ..seeds import derive
from .method import Method, mix_in


def nobody(X: torch.Tensor, weights: torch.Tensor, config: RunConfig) -> Aggregate:
    """A client has weight 1 - lam in its next state, and nobody has the rest: A is zero."""
    return Aggregate(torch.zeros(len(X), len(X)), X, torch.zeros(len(X)))


def towards_start(layout: Layout, state: State, answer: State, lam: float, config: RunConfig, t: int) -> State:
    start = layout.start(config.init, derive(config.seed, "start"))
    return mix_in(layout, state, {name: start[name] for name in answer}, lam, config, t)


PLACEBO = Method("placebo", aggregate=nobody, mixing=lambda config: config.mixing, apply_answer=towards_start)
