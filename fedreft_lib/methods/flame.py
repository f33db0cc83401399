"""FLAME (Le et al. 2025, arXiv 2506.16600): clients with fewer means use fewer experts, and train those they use more.

    f_i^j     the share of client i's training tokens whose chosen k_i experts include expert j, after training
    expert j  <- sum_i w_i^j (its tensors at client i),    w_i^j = (f_i^j)^t |D_i|, normalised over the clients
    router    <- mean by example counts                    k_i, s_i stay with their client

`active` has the k_i. flame_t = 0 averages as FedAvg does. An expert that nobody chose keeps its tensors. flame_scale is
how s_i begins, and whether it is trained: "learned" from 1, "one", or the ratio E / k_i. See `routed` for the edit.

Reduced: the paper routes the experts of a sparse model, each with its LoRA. Here `experts` adapters stand at each place
of a dense model, so no computation of the backbone is saved; a router of our own chooses among them. Reconstructions:
f counts all tokens that a place edits (with LoRA, all of a text), place by place, and so do the weights and s; the
router's start; everything over LoReFT, where each R is retracted by itself.
"""

import itertools

import torch

from ..config import RunConfig
from ..core.aggregation import Aggregate
from ..core.state import Layout, State
from ..model.encoding import Client
from ..model.place_inputs import place_inputs
from ..model.steered import SteeredModel
from .method import TOLD, Method, Phase, Sent, ending, weighted_mean
from .routed import OWN, Routed

CHOSEN = TOLD + "chosen."  # then the name of a router: f (places, E)


def without_own(names, *, but: tuple[str, ...] = ()) -> tuple[str, ...]:
    own = set(ending(names, *OWN)) - set(ending(names, *but))
    return tuple(name for name in names if name not in own)


def trained(names, kind, config: RunConfig, t: int) -> list[Phase]:
    return [Phase(without_own(names, but=("s",) if config.flame_scale == "learned" else ()))]


def extras(layout: Layout, config: RunConfig) -> State:
    shapes = layout.adapter.shapes
    return {CHOSEN + name: torch.zeros(shapes[name][:2]) for name in ending(shapes, "route")}


def own_means(model: SteeredModel, config: RunConfig, k: int, state: State, client: Client) -> State:
    """The client's k_i, and its s_i at the start."""
    E, active = config.experts, config.active[k] if config.active else config.experts
    s = E / active if config.flame_scale == "ratio" else 1.0
    values = {"k": float(active), "s": s}
    return {name: torch.full_like(state[name], values[name.rsplit(".", 1)[-1]]) for name in ending(state, *OWN)}


@torch.no_grad()
def shares(model: SteeredModel, config: RunConfig, before, found, prepared, client: Client, t: int) -> State:
    """f of each router with the trained state, over the client's training items."""
    state, kind = model.moved(found.state), model.adapter.kind
    counts = {name: torch.zeros(state[name].shape[:2]) for name in ending(model.layout.adapter_names, "route")}
    tokens = {name: torch.zeros(len(state[name]), 1) for name in counts}
    for begin, place, x in place_inputs(model, state, client.train, config.batch_size):
        own, name = {n: state[begin + n][place] for n in ("route", "k")}, f"{begin}route"
        counts[name][place] += kind.routes(x.float(), own)[1].sum(0).cpu()
        tokens[name][place] += len(x)
    return {CHOSEN + name: counts[name] / tokens[name].clamp(min=1) for name in counts}


def by_expert(sent: Sent, aggregate: Aggregate) -> list[State]:
    """The mean by example counts, but for the experts: each client weighs by how often it chose an expert, too."""
    answer = {name: tensor.clone() for name, tensor in sent.spec.named(aggregate.aggregate[0]).items()}
    old, each = sent.spec.named(sent.before[0]), [sent.spec.named(row) for row in sent.X]
    for router in ending(answer, "route"):
        f = sent.told[CHOSEN + router].clamp(0, 1)  # (N, places, E)
        w = f.pow(sent.config.flame_t) * sent.weights[:, None, None]
        for name in (router.removesuffix("route") + tensor for tensor in sent.kind.of_experts):
            for at in itertools.product(*map(range, w.shape[1:])):
                own = w[(slice(None), *at)]
                if torch.equal(own, sent.weights):
                    continue  # it is the mean already, to the bit
                X = torch.stack([state[name][at].flatten() for state in each])
                mean = weighted_mean(X, own, sent.config).aggregate[0] if own.any() else old[name][at]
                answer[name][at] = mean.view_as(answer[name][at])
    return [answer for _ in sent.X]


FLAME = Method(
    "flame",
    aggregate=weighted_mean,  # its A is that of the router
    mixing=lambda config: 1.0,
    one_for_all=True,
    state_kind=lambda kind, config: Routed(kind, config.experts),
    phases=trained,
    sends=lambda names, kind, config: without_own(names),
    extras=extras,
    start=own_means,
    after=shares,
    answer=by_expert,
)
