"""FedALT (Bian et al. 2026): each client has its own branch and a frozen "rest" branch, the mean of the others.

A router weighs the two at every token. The client trains its own branch and the router, and sends its own branch. It
receives the exclude-self mean, which replaces its "rest" branch. FedALT is the nearest published relative of
All-But-Me: it mixes the others in as functions, not as parameters. Over LoReFT: reconstruction.
"""

import torch

from ..core import aggregation
from ..core.state import State
from .branches import Gated
from .method import Method, Phase, ending, of_branch


def put_aside(layout, state: State, answer: State, lam: float, config, t: int) -> State:
    """The "own" tensors of the answer become this client's "rest"."""
    parts = {name: name.rpartition("own.") for name in answer}  # a module's path may contain "own." too
    return {**state, **{f"{before}rest.{tensor}": answer[name] for name, (before, _, tensor) in parts.items()}}


FEDALT = Method(
    "fedalt",
    aggregate=lambda X, weights, config: aggregation.all_but_me(X, "mean", (weights > 0).to(torch.float32)),
    mixing=lambda config: 1.0,
    state_kind=lambda kind, config: Gated(kind),
    phases=lambda names, kind, config, t: [Phase((*of_branch(names, "own"), *ending(names, "route")))],
    sends=lambda names, kind, config: of_branch(names, "own"),
    apply_answer=put_aside,
)
