"""FedPPA (arXiv 2510.14698): clients with different layers; each keeps its own, drawn ever more to the layers' means.

    client   f_k(phi) + mu(s) / 2 |phi - G|^2 over its own layers, at step s of S, with mu(s) = mu s / S
    server   G[layer] = sum_k H_k phi_k[layer] / sum_k H_k, over the clients of the round that own the layer

H_k is an entropy of client k's answers, see `entropies`; owners count equally if all their H are 0. A layer that nobody
owns in a round keeps its mean. ppa_growth="constant": the mean of mu(s), mu (S + 1) / (2 S), at each step. With mu = 0
all learn alone, but for a head that is averaged, by H. Who was away is drawn to the means that it received last.

The penalty and both entropies are reconstructions, since the equations could not be had. For SGD the penalty is the
interpolation phi <- phi + lr mu(s) (G - phi); for AdamW, and in R's coordinates, it is not. Over LoReFT it is over R, W
and b, and the mean of R is retracted. The layers that a client lacks are masked, yet sent: bytes count them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.aggregation import Aggregate
from ..core.notation import parse_layers
from ..core.rotation import retract
from ..core.state import Layout, State
from ..core.training import Penalty
from ..errors import ConfigError
from .entropies import ENTROPY, by_entropy, entropy
from .masked import LIVE, Masked, but_live
from .method import KEPT, Method, Phase, Sent, ending, weighted_mean

MEAN = f"{KEPT}mean."  # G, as a client received it


def owned(layout: Layout, config: RunConfig, k: int) -> State:
    """Which places of each tensor client k has, (places,) of 0 and 1. Raises ConfigError where it has none."""
    places, text = layout.adapter.places, config.client_layers[k] if config.client_layers else "all"
    there = {layer for layers in places.values() for layer in layers}
    own = there if text == "all" else set(parse_layers(text, n_layers=1000))
    if not own & there or max(own) > max(there):
        raise ConfigError(f"client_layers: {text!r} must be among the adapted layers {sorted(there)}")
    return {name: torch.tensor([float(layer in own) for layer in layers]) for name, layers in places.items()}


def extras(layout: Layout, config: RunConfig) -> State:
    for k in range(len(config.client_layers)):
        owned(layout, config, k)  # a server refuses, too
    shapes = layout.adapter.shapes
    return {f"{MEAN}{name}": torch.zeros(shapes[name]) for name in but_live(tuple(shapes))} | {ENTROPY: torch.zeros(())}


def own_layers(model, config: RunConfig, k: int, state: State, client) -> State:
    """Its places are live, and the first means are the common start."""
    names, own = model.layout.adapter_names, owned(model.layout, config, k)
    live = {name: own[name][:, None].expand_as(state[name]).clone() for name in ending(names, LIVE)}
    return {**live, **{f"{MEAN}{name}": state[name].clone() for name in but_live(names)}}


def towards_means(config: RunConfig) -> Penalty | None:
    def distance(phi: State, start: State, name: str) -> Tensor:
        live = start["".join(name.rpartition(".")[:2]) + LIVE]  # (places, r), or (K, places, r) of stacked states
        gap = (phi[name] - start[f"{MEAN}{name}"]).flatten(live.dim() - 1)  # (places, numbers)
        return (live[..., 0] * gap.square().sum(-1)).sum()

    def drawn(phi: State, start: State, moving: Sequence[str], step: int, steps: int) -> Tensor:
        mu = config.ppa_mu * (step if config.ppa_growth == "linear" else (steps + 1) / 2) / steps
        return mu / 2 * sum(distance(phi, start, name) for name in moving if f"{MEAN}{name}" in start)

    return drawn if config.ppa_mu else None


def means_by_layer(sent: Sent, aggregate: Aggregate) -> list[State]:
    """One answer for all. The server's memory keeps it."""
    answer = sent.spec.named(sent.memory.get("means", sent.before[0]).clone())  # all begin with the common start
    owns, states = [owned(sent.layout, sent.config, k) for k in sent.who], [sent.spec.named(row) for row in sent.X]
    for name, G in answer.items():
        p = sent.weights[:, None] * torch.stack([own[name] for own in owns])  # (N, places)
        some, phi = p.any(0), torch.stack([state[name] for state in states])
        G[some] = torch.einsum("kp,kp...->p...", p[:, some] / p[:, some].sum(0), phi[:, some])
    answer |= {name: retract(answer[name], sent.config.retraction) for name in sent.kind.rotated}
    sent.memory["means"] = sent.spec.row(answer)
    return [answer for _ in sent.who]


FEDPPA = Method(
    "fedppa",
    aggregate=weighted_mean,  # for the history; `means_by_layer` does not use it
    state_kind=lambda kind, config: Masked(kind),
    phases=lambda names, kind, config, t: [Phase(but_live(names))],
    sends=but_live,
    penalty=towards_means,
    extras=extras,
    start=own_layers,
    after=entropy,
    weigh=by_entropy,
    answer=means_by_layer,
    apply_answer=lambda layout, state, answer, *_: {**state, **{MEAN + name: G for name, G in answer.items()}},
)
