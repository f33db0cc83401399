"""FedVRA (arXiv 2212.01519): FedProx with a dual h_k for each client, which removes the drift between clients.

    client   phi_k = argmin f_k(phi) + gamma (<h_k, phi> + |phi - phi0|^2 / 2),   then h_k <- h_k + a (phi_k - phi0)
    server   phi0 <- d mean_S phi_k + mean_all h

mean_S is over the clients of the round, mean_all over all clients (but the unseen), both weighted by example counts.
The server keeps mean_all h and adds p_k a (phi_k - phi0), so no dual is sent. There is no factor |S| / K on it: with
one, the limit is wrong. For a = d = 1 this is consensus ADMM (FedDyn), whose limit minimises sum_k p_k f_k where all
take part and each finds its minimum; d < 1 adds a ridge; a = 0, d = 1 is FedProx with mu = gamma, to the bit.

The rule is read from two third-party programs, since there is no official one; the server's factor is derived. Here a
few optimiser steps stand for the local minimum. Over LoReFT the duals of R, W and b are in the plain space and R is
retracted afterwards, so the guarantee is lost there; over LoRA and DiReFT the algebra is exact.

A head that is averaged or private has the proximal term alone; head="shared" gives it a dual. A client that is lost, or
whose update is refused, keeps its old dual. One that has left keeps its place in mean_all. An answer that Flower loses
takes its client's last change of the dual with it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.aggregation import Aggregate
from ..core.state import Layout, State
from ..core.training import Penalty
from .fedprox import distance
from .method import KEPT, Method, Sent, by_sharing, weighted_mean

DUAL = f"{KEPT}dual."


def duals(layout: Layout, config: RunConfig) -> State:
    """h = 0 for each tensor that is sent, but for a head that is averaged apart."""
    head = layout.head_names if config.head == "shared" else ()
    names = {*by_sharing(layout.adapter_names, layout.kind, config), *head}
    return {f"{DUAL}{name}": torch.zeros(shape) for name, shape in layout.spec.shapes if name in names}


def with_dual(config: RunConfig) -> Penalty | None:
    gamma = config.vra_gamma

    def held(phi: State, start: State, moving: Sequence[str], step: int, steps: int) -> Tensor:
        near = distance(gamma, phi, start, moving)
        return near + gamma * sum((start[f"{DUAL}{n}"] * phi[n]).sum() for n in moving if f"{DUAL}{n}" in start)

    return held if gamma else None


def next_dual(model, config: RunConfig, before: State, trained, prepared, client, t: int) -> State:
    """h + a (phi - phi0), after training."""
    of = {name: name.removeprefix(DUAL) for name in before if name.startswith(DUAL)}
    return {name: before[name] + config.vra_a * (trained.state[own] - before[own]) for name, own in of.items()}


def with_mean_dual(sent: Sent, aggregate: Aggregate) -> list[State]:
    """d mean_S phi + mean_all h. The server's memory keeps mean_all h."""
    config = sent.config
    shares = (sent.weights / sum(sent.examples[: len(sent.examples) - config.unseen])).to(sent.X.dtype)
    dual = sent.memory.get("dual", torch.zeros_like(sent.X[0])) + config.vra_a * shares @ (sent.X - sent.started)
    sent.memory["dual"] = dual
    return [sent.spec.named(config.vra_d * row + dual) for row in aggregate.aggregate]


FEDVRA = Method(
    "fedvra",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    penalty=with_dual,
    extras=duals,
    after=next_dual,
    answer=with_mean_dual,
)
