"""FedALT (Bian et al. 2026): beside its own state each client keeps a frozen one, the mean of all others'.

A router weighs the two at every token. The client trains its own branch and the router and sends its own branch; it
gets the exclude-self mean back and puts it in the place of "the rest of the world", whole. It is the nearest published
relative of All-But-Me: the others are mixed in as functions, not as parameters. Over LoReFT: reconstruction.
"""

import torch

from ..core import aggregation
from ..core.state import State
from .branches import Gated
from .method import Method, Phase, ending, of_branch


def put_aside(layout, state: State, answer: State, lam: float, config, t: int) -> State:
    """What was received as everybody's "own" becomes this client's "rest"."""
    parts = {name: name.rpartition("own.") for name in answer}  # a module's path may have the letters, too
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
