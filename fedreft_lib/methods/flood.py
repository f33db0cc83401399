"""FLood (Ling et al. 2026, arXiv 2602.01039): unusual items count more in training, unusual clients less in the mean.

    item x:      w(x) = (1 + beta [o(x) > the 1 - q quantile of o]) / mean w
    client k:    p_k ~ n_k exp(z_k / tau),    z_k = (c_k - mean c) / sd c,    c_k = mean of -o(x) over its items

o(x) is how unusual an item is to the state that the client received, see `uncertainty`.

A reconstruction from the paper's abstract: that items are weighted in training, and clients by confidence in the mean.
The formulas, o and the defaults are ours; sd is the sample's, over the clients of the round, and all z are 0 where it
is 0. Clients report c_k themselves, and a false one buys weight. beta = 0 with a huge tau is the base. Over LoReFT
nothing differs but the retraction of R.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import Layout, State
from ..core.training import Trained
from ..model.encoding import Client
from ..model.steered import SteeredModel
from .fedavg import FEDAVG
from .method import TOLD, Method, Phase, Sent
from .uncertainty import scores

CONFIDENCE = f"{TOLD}confidence"  # c_k
WEIGHT, SCORE = "weight", "score"  # what `prepare` makes: w and o of each item


def item_weights(o: Tensor, beta: float, q: float) -> Tensor:
    """w (items,) with mean 1."""
    weights = 1 + beta * (o > o.quantile(1 - q)).to(o)
    return weights / weights.mean()


def by_confidence(weights: Tensor, confidence: Tensor, tau: float) -> Tensor:
    """Weights (N,), up to a factor, from the base's and c (N,). A weight of 0 stays, and its c is not looked at."""
    there = weights > 0
    c = confidence.double()[there]
    z = (c - c.mean()) / c.std() if len(c) > 1 and bool(c.max() > c.min()) else torch.zeros_like(c)
    found = weights.double()
    found[there] *= ((z - z.max()) / tau).exp()
    return found.to(weights)


def flood(base: Method) -> Method:
    """`base`, with FLood's weights of items and of clients."""

    def phases(names, kind, config: RunConfig, t: int) -> list[Phase]:
        return [replace(phase, weights=WEIGHT) for phase in base.phases(names, kind, config, t)]

    def prepare(model: SteeredModel, config: RunConfig, state: State, client: Client, t: int) -> State:
        o = scores(model, config, state, client.train, config.flood_score)
        own = {WEIGHT: item_weights(o, config.flood_boost, config.flood_share), SCORE: o}
        return {**base.prepare(model, config, state, client, t), **own}

    def extras(layout: Layout, config: RunConfig) -> State:
        return {**base.extras(layout, config), CONFIDENCE: torch.zeros(())}

    def after(
        model: SteeredModel, config: RunConfig, before: State, trained: Trained, prepared: State, client: Client, t: int
    ) -> State:
        told = {CONFIDENCE: -prepared[SCORE].mean().float()}
        return {**base.after(model, config, before, trained, prepared, client, t), **told}

    def weigh(sent: Sent) -> Tensor:
        return by_confidence(base.weigh(sent), sent.told[CONFIDENCE], sent.config.flood_tau)

    return replace(base, name="flood", phases=phases, prepare=prepare, extras=extras, after=after, weigh=weigh)


FLOOD = flood(FEDAVG)
