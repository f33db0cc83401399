"""FLoRA (Wang et al. 2024): the server averages nothing. It stacks the clients' additions side by side, exactly:

    [A_1; ...; A_K] and [p_1 B_1, ..., p_K B_K], whose product is sum_k p_k B_k A_k

The stack becomes a frozen part of every client's model, and a new branch is trained on top of it in each round. A
client receives K times what it sends. Over LoReFT (reconstruction) B is R^T and A is W - R, and the offsets R^T b are
summed with the weights p_k; the mean of the clients' edits is then exact, too.
"""

import torch

from ..core.aggregation import Aggregate
from ..core.state import State
from ..seeds import derive
from .branches import Stacked, branch
from .method import Method, Phase, Sent, of_branch, weighted_mean

SLOT = "stack."


def groups(names) -> list[str]:
    """The parts of the names before the branch: "" for interventions, "q_proj." and the like for linear modules."""
    return list(dict.fromkeys(name.rpartition("fresh.")[0] for name in of_branch(names, "fresh")))


def stacked(sent: Sent, aggregate: Aggregate) -> list[State]:
    """One answer for all: the stack of this round. A client that was not admitted has zeros in B and c."""
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


def apply_stacked(layout, state: State, answer: State, lam: float, config, t: int) -> State:
    """Puts the answer into round t's slot. The fresh branch starts again, with the same numbers for all clients."""
    fresh = layout.start(config.init, derive(config.seed, "start", t))
    after = {**state, **{name: fresh[name] for name in of_branch(state, "fresh")}}
    for name, received in answer.items():
        if SLOT in name:
            slots = state[name].clone()
            room = slots[:, t - 1]
            room[tuple(map(slice, received.shape))] = received  # the slot has room for more clients than may take part
            after[name] = slots
    return after


FLORA = Method(
    "flora",
    aggregate=weighted_mean,  # its A is the mixing matrix of the edits; `stacked` does not use the mean itself
    mixing=lambda config: 1.0,
    one_for_all=True,
    state_kind=lambda kind, config: Stacked(kind, config.rounds, config.most_at_once),
    phases=lambda names, kind, config, t: [Phase(of_branch(names, "fresh"))],
    sends=lambda names, kind, config: of_branch(names, "fresh"),
    answer=stacked,
    apply_answer=apply_stacked,
)
