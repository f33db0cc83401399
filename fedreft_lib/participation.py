"""Who takes part in a round, and whose state counts among "the others". Our rules: in the paper all take part.

away      before it joins, after it left, or not drawn this round: it does nothing, keeps its state, receives nothing,
          and is nobody's other
drops out it trained, and nothing arrives: its work of the round is lost, else as if away. One that never reports drops
          out in every round
late      it trained on the state of round t, and its update arrives when round t is closed: in t it is as if away; in
          t + 1, in place of training, it takes part with that update, and receives. After the last round it is lost
joins     it begins with the state that all began with
"""

from typing import TYPE_CHECKING

import torch

from .randomness import derive

if TYPE_CHECKING:
    from .config import RunConfig


def away(config: "RunConfig", t: int) -> dict[int, str]:
    """The clients (from 0) that are away in round t, with the reason."""
    joined, left = dict(config.joins), dict(config.leaves)
    found = {}
    for k in range(config.clients):
        if t < joined.get(k + 1, 1):
            found[k] = f"joins in round {joined[k + 1]}"
        elif t > left.get(k + 1, t):
            found[k] = f"left after round {left[k + 1]}"
    there = [k for k in range(config.clients) if k not in found]
    if config.sampled is not None and config.sampled < len(there):
        generator = torch.Generator().manual_seed(derive(config.seed, "sampled", t))
        drawn = torch.randperm(len(there), generator=generator)[: config.sampled].tolist()
        found |= {k: "not drawn" for place, k in enumerate(there) if place not in drawn}
    return found


def drops_out(config: "RunConfig", k: int, t: int) -> bool:
    return (k + 1, t) in config.drops


def is_late(config: "RunConfig", k: int, t: int) -> bool:
    return (k + 1, t) in config.late
