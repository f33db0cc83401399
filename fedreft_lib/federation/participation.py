"""Which clients take part in a round, and whose states are "the others". Our rules: in the paper all take part.

gone      the client has not joined yet, or has left
away      gone, or not drawn this round: it does nothing, keeps its state, receives nothing, and is nobody's "other"
drops out it trains, but nothing arrives: its work of the round is lost; all else as if away. A client that never
          reports drops out in every round
late      it trains in round t, but its update arrives after round t is closed. In t it counts as away. In t + 1 it
          takes part with that update instead of training, and receives. After the last round the update is lost
joins     it begins with the state that all clients began with
unseen    away in every round, and tested all the same: with the newest state for all, where there is one

Where a method's server holds one state for all (`Method.one_for_all`), a client that missed some of it gets the newest
before it trains or is tested, as in FedAvg. Then only a client that is gone keeps an old state.
"""

import torch

from ..config import RunConfig
from ..seeds import derive


def gone(config: RunConfig, t: int) -> dict[int, str]:
    """The clients (from 0) that do not belong to the federation in round t, with the reason."""
    joins = {k - 1: f"joins in round {first}" for k, first in config.joins if t < first}
    leaves = {k - 1: f"left after round {last}" for k, last in config.leaves if t > last}
    return leaves | joins


def away(config: RunConfig, t: int) -> dict[int, str]:
    """The clients (from 0) that are away in round t, with the reason."""
    found = gone(config, t) | {k: "unseen" for k in range(config.clients - config.unseen, config.clients)}
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
    return bool(config.unseen or config.sampled or config.joins or config.leaves or config.drops or config.late)
