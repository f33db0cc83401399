"""Who takes part in a round, and whose state counts among "the others". Our rules: in the paper all take part.

gone      before it joins, or after it left
away      gone, or not drawn this round: it does nothing, keeps its state, receives nothing, and is nobody's other
drops out it trained, and nothing arrives: its work of the round is lost, else as if away. One that never reports drops
          out in every round
late      it trained on the state of round t, and its update arrives when round t is closed: in t it is as if away; in
          t + 1, in place of training, it takes part with that update, and receives. After the last round it is lost
joins     it begins with the state that all began with

Where a method's server holds one state for all (`Method.one_for_all`), who has missed some of it is brought up to
date before it trains or is tested, as in FedAvg: then nobody but who is gone keeps an old one.
"""

import torch

from ..config import RunConfig
from ..seeds import derive


def gone(config: RunConfig, t: int) -> dict[int, str]:
    """The clients (from 0) that are no part of the federation in round t, with the reason."""
    joins = {k - 1: f"joins in round {first}" for k, first in config.joins if t < first}
    leaves = {k - 1: f"left after round {last}" for k, last in config.leaves if t > last}
    return leaves | joins


def away(config: RunConfig, t: int) -> dict[int, str]:
    """The clients that are away in round t, with the reason."""
    found = gone(config, t)
    there = [k for k in range(config.clients) if k not in found]
    if config.sampled is not None and config.sampled < len(there):
        generator = torch.Generator().manual_seed(derive(config.seed, "sampled", t))
        drawn = set(torch.randperm(len(there), generator=generator)[: config.sampled].tolist())
        found |= {k: "not drawn" for place, k in enumerate(there) if place not in drawn}
    return dict(sorted(found.items()))


def drops_out(config: RunConfig, k: int, t: int) -> bool:
    return (k + 1, t) in config.drops


def is_late(config: RunConfig, k: int, t: int) -> bool:
    return (k + 1, t) in config.late


def some_miss_rounds(config: RunConfig) -> bool:
    return bool(config.sampled or config.joins or config.leaves or config.drops or config.late)
