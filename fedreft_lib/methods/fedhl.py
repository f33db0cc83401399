"""FedHL (arXiv 2505.18494): clients of different ranks; the server adds what each changed to a sum of full rank.

    W <- W + sum_i p_i (W_i - W^{r_i}),    p_i ~ 1 / (e_i^2 + eps),    e_i = |W - W^{r_i}|_F^2,    eps = 1e-6

W is all that is added to the frozen model, a matrix for each module or site (see `additions`); W^{r} is its truncation
to rank r by SVD, from which a client of that rank trains. FlexLoRA would average the W_i and so loses what no client
holds. e_i sums over modules or sites. hl_weights: "paper"; "uniform"; "blend", 1 / (e_i + mean e). As printed, e_i is
squared once more: a client of full rank has e = 0 and takes nearly everything.

Truncations are nested: the server answers all with the factors of the largest rank, and `live` selects the first r_i of
them. So a client may be tested with its own rank or with the full one (hl_deploy). Bytes count `rank` rows for each
client, though its first r_i would do.

No truncated client ever corrects what lies beyond its rank, so W may drift in later rounds. The form over interventions
is a reconstruction; the rule is read from third parties. A start that is not the backbone (init="random") is truncated
by rows. A late update's e_i is the distance of W from what that update was trained from.
"""

import torch
from torch import Tensor

from ..core.aggregation import Aggregate
from ..core.state import State
from .additions import addition, factors, groups
from .masked import LIVE, Masked, but_live
from .method import Method, Phase, Sent, ending, weighted_mean

DELTA = "delta."  # then the part of the names before the tensor's own, as in "q_proj."
EPS = 1e-6


def own_rank(model, config, k: int, state: State, client) -> State:
    return {name: live_rows(state[name], config, k) for name in ending(model.layout.adapter_names, LIVE)}


def live_rows(like: Tensor, config, k: int) -> Tensor:
    """(places, r): 1 for the first `ranks[k]` rows."""
    rank = config.ranks[k] if config.ranks else config.rank
    return (torch.arange(config.rank) < rank).to(torch.float32).expand(like.shape[0], -1).clone()


def added(kind: Masked, state: State, config, k: int | None = None) -> State:
    """The additions of a state by group. k: the client whose rank it has; None: all rows."""
    found = {}
    for group, phi in groups(state).items():
        like = phi[kind.kind.subspace[0]]
        live = torch.ones(like.shape[:2]) if k is None else live_rows(like, config, k)
        found[group] = addition(kind, {**phi, LIVE: live})
    return found


def total(sent: Sent) -> State:
    """W before the round, by group of names; in the first round it is that of the common start."""
    kept = {name.removeprefix(DELTA): W.double() for name, W in sent.memory.items() if name.startswith(DELTA)}
    return kept or added(sent.kind, sent.spec.named(sent.before[0]), sent.config)


def by_error(e: Tensor, how: str) -> Tensor:
    """p (n,), from the squared truncation errors e (n,)."""
    if how == "uniform" or not e.any():
        return torch.full_like(e, 1 / len(e))
    p = 1 / (e.square() + EPS) if how == "paper" else 1 / (e + e.mean())
    return p / p.sum()


def by_truncation(sent: Sent) -> Tensor:
    """p (N,); 0 for a client that was not admitted."""
    W, there = total(sent), sent.weights > 0
    parts = [added(sent.kind, sent.spec.named(x), sent.config, k) for k, x in zip(sent.who, sent.started, strict=True)]
    e = torch.stack([sum((W[group] - part).square().sum() for group, part in own.items()) for own in parts])
    p = torch.zeros_like(e)
    p[there] = by_error(e[there], sent.config.hl_weights)
    return p


def truncated(sent: Sent, aggregate: Aggregate) -> list[State]:
    """One answer for all: the new W's factors. The server's memory keeps W."""
    W = total(sent)
    for p, k, x, start in zip(sent.weights / sent.weights.sum(), sent.who, sent.X, sent.started, strict=True):
        now, then = (added(sent.kind, sent.spec.named(row), sent.config, k) for row in (x, start))
        W = {group: old + p * (now[group] - then[group]) for group, old in W.items()} if p else W
    sent.memory.update({f"{DELTA}{group}": each.float() for group, each in W.items()})
    answer = {
        f"{group}{name}": tensor
        for group, each in W.items()
        for name, tensor in factors(sent.kind.kind, each, sent.config.rank).items()
    }
    return [answer for _ in sent.who]


def deployed(model, config, state: State, client, t: int) -> State:
    """All rows live where hl_deploy="full"."""
    names = ending(model.layout.adapter_names, LIVE) if config.hl_deploy == "full" else ()
    return {**state, **{name: torch.ones_like(state[name]) for name in names}}


FEDHL = Method(
    "fedhl",
    aggregate=weighted_mean,  # its A shows p; `truncated` does not use the mean itself
    mixing=lambda config: 1.0,
    one_for_all=True,
    state_kind=lambda kind, config: Masked(kind),
    phases=lambda names, kind, config, t: [Phase(but_live(names))],
    sends=but_live,
    start=own_rank,
    weigh=by_truncation,
    answer=truncated,
    deploy=deployed,
)
