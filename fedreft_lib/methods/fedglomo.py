"""FedGLOMO (Das et al., UAI 2022, arXiv 2012.04061): momentum against the clients' noise, at both ends.

A client runs one local training from the global state w_t and one from w_(t-1), on the same batches B_s, s = 1..E:

    D_k = w_t - w_k        D^_k = w_(t-1) - w^_k        w_k, w^_k: where the two end
    v_s = g(w_s; B_s) + m (v_(s-1) - g(w_(s-1); B_s))   is the gradient of step s; v_0 = mean_s g(w_1; B_s), w_0 = w_1

    u_t = beta mean_k D_k + (1 - beta) (u_(t-1) + mean_k (D_k - D^_k)),    u_1 = mean_k D_k,    w_(t+1) = w_t - u_t

beta = 1 and m = 0 is FedAvg with equal weights. The paper has m = 1 and begins with the client's full gradient, which
v_0 is where a round is one pass; the code of one of its authors has m = 0.8 and begins with a batch's. g and the
differences D are those of R, W, b (A, B for LoRA) themselves. The paper steps by SGD (optimiser="sgd"), for which its
rates hold; v is the gradient of any optimiser here. Nothing is compressed. A client takes one training's worth of
gradients more for D^, three times as many in each with m > 0, and sends and receives twice as much.

Both trainings of a round have its learning rates. Where these fall over the rounds, D^_k is no longer the D_k of the
round before, even at full participation; schedule_over="round" has the paper's setting.

Reconstructions: R is retracted after the server's step. A head is averaged, and both trainings start from its mean.
"""

import functools

import torch

from ..config import RunConfig
from ..core.aggregation import Aggregate
from ..core.state import Layout, State
from ..core.training import Optimise
from .method import ALSO, KEPT, TOLD, Method, Sent, plain_mean
from .recursive_momentum import with_momentum

PREVIOUS, CHANGE = KEPT + "previous.", TOLD + "change."  # w_(t-1), and D_k - D^_k


def corrected(config: RunConfig) -> Optimise | None:
    return functools.partial(with_momentum, config.glomo_momentum) if config.glomo_momentum else None


def from_previous(config: RunConfig, state: State, t: int) -> State:
    """The client's state with the tensors of w_(t-1); {} in the first round, which has no state before it."""
    if t == 1:
        return {}
    return {**state, **{name.removeprefix(PREVIOUS): state[name] for name in state if name.startswith(PREVIOUS)}}


def change(model, config: RunConfig, before: State, trained, prepared: State, client, t: int) -> State:
    """D_k - D^_k; 0 in the first round."""
    names = model.layout.adapter_names
    if t == 1:
        return {CHANGE + name: torch.zeros_like(before[name]) for name in names}
    return {
        CHANGE + name: (before[name] - trained.state[name]) - (before[PREVIOUS + name] - prepared[ALSO + name])
        for name in names
    }


def global_step(sent: Sent, aggregate: Aggregate) -> list[State]:
    """w_(t+1), and w_t beside it. The server's memory keeps u."""
    w, mean, beta = sent.before[0], aggregate.aggregate[0], sent.config.glomo_beta
    if "u" in sent.memory:
        told = torch.cat([sent.told[CHANGE + name].flatten(1) for name in sent.spec.names], 1)
        changes = plain_mean(told, sent.weights, sent.config).aggregate[0]
        mean = mean - (1 - beta) * (sent.memory["u"] + changes - (w - mean))  # w - u
    sent.memory["u"] = w - mean
    previous = {PREVIOUS + name: tensor for name, tensor in sent.spec.named(w).items()}
    return [{**sent.spec.named(mean), **previous} for _ in sent.X]


def extras(layout: Layout, config: RunConfig) -> State:
    shapes = layout.adapter.shapes
    return {prefix + name: torch.zeros(shape) for prefix in (PREVIOUS, CHANGE) for name, shape in shapes.items()}


FEDGLOMO = Method(
    "fedglomo",
    aggregate=plain_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    extras=extras,
    optimiser=corrected,
    also=from_previous,
    after=change,
    answer=global_step,
)
