"""FLoRA (Wang et al. 2024): nothing is averaged; the clients' additions are stacked side by side, exactly.

    [A_1; ...; A_K] and [p_1 B_1, ..., p_K B_K], whose product is sum_k p_k B_k A_k

The stack becomes a frozen part of everybody's model and training starts afresh on top of it, round after round. What is
sent down is K times what is sent up. Over LoReFT (reconstruction) B is R^T, A is W - R, and the offsets R^T b are added
up; the mean of the clients' edits is exact as well.
"""

import torch

from ..core.aggregation import Aggregate
from ..core.state import State
from ..seeds import derive
from .branches import Stacked, branch
from .method import Method, Phase, Sent, of_branch, weighted_mean

SLOT = "stack."


def groups(names) -> list[str]:
    """What stands before the branch's name: "" for interventions, "q_proj." and the like for linear modules."""
    return list(dict.fromkeys(name.rpartition("fresh.")[0] for name in of_branch(names, "fresh")))


def stacked(sent: Sent, aggregate: Aggregate) -> list[State]:
    """One answer for all: the stack of this round; a client that was not admitted has columns of zero in it."""
    shares = sent.weights / sent.weights.sum()
    states = [sent.spec.named(row) for row in sent.X]
    answer = {}
    for group in groups(states[0]):
        own = [{n.removeprefix(group): t for n, t in state.items() if n.startswith(group)} for state in states]
        maps = [sent.kind.kind.as_map(branch(state, "fresh")) for state in own]
        answer[f"{group}stack.A"] = torch.cat([m["A"] for m in maps], dim=-2)
        answer[f"{group}stack.B"] = torch.cat([p * m["B"] for p, m in zip(shares, maps, strict=True)], dim=-1)
        if sent.kind.kind.residual:
            answer[f"{group}stack.c"] = sum(p * m["c"] for p, m in zip(shares, maps, strict=True))
    return [answer for _ in states]


def start_afresh(layout, state: State, answer: State, lam: float, config, t: int) -> State:
    """The answer goes into round t's slot, and the fresh branch starts again, the same for all clients."""
    fresh = layout.start(config.init, derive(config.seed, "start", t))
    after = {**state, **{name: fresh[name] for name in of_branch(state, "fresh")}}
    for name, received in answer.items():
        if SLOT in name:
            slots = state[name].clone()
            room = slots[:, t - 1]
            room[tuple(map(slice, received.shape))] = received  # fewer may have taken part than there is room for
            after[name] = slots
    return after


FLORA = Method(
    "flora",
    aggregate=weighted_mean,  # in function space: the row that the picture of who listens to whom shows
    mixing=lambda config: 1.0,
    one_for_all=True,
    state_kind=lambda kind, config: Stacked(kind, config.rounds, config.most_at_once),
    phases=lambda names, kind, config, t: [Phase(of_branch(names, "fresh"))],
    sends=lambda names, kind, config: of_branch(names, "fresh"),
    answer=stacked,
    apply_answer=start_afresh,
)
