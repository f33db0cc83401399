"""The first part of a round: who trains locally, on what, in which phases, and who with whom in one pass."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cohort import train_together
from .config import RunConfig
from .encoded import Answers, Labels
from .engine import cohorts
from .interventions import State
from .local import Trained, train
from .randomness import derive
from .schedule import steps_per_round
from .states import hash_of
from .strategies import STRATEGIES
from .strategies.base import Phase
from .worlds import World

# What local training does not depend on, so that runs which differ in these alone share their first round. The engine
# is among them because those who train together are named in the key.
AFTER_TRAINING = {
    "method", "aggregation", "mixing", "mixing_range", "mixing_grid", "retraction", "sharing", "head", "align",
    "rounds", "eval_every", "experiment", "scoring", "test_size", "union_size", "max_new_tokens", "init",
    "held_out_size", "server_lr", "server_beta1", "server_beta2", "server_tau", "dpa_weighting", "dpa_w_max",
    "sampled", "joins", "leaves", "drops", "late", "hostile", "attack", "attack_scale", "norm_limit", "norm_clip",
    "min_clients", "byzantine", "engine",
}  # fmt: skip


@dataclass(frozen=True)
class Participant:
    """Who trains: a client, or the centralised learner with everybody's data."""

    name: str
    train: Answers | Labels
    steps: int


def participants(world: World, config: RunConfig) -> list[Participant]:
    """The clients; for a strategy that pools data, one learner that takes as many steps as they all together."""
    each = [Participant(c.name, c.train, steps_per_round(len(c.train), config)) for c in world.clients]
    if not STRATEGIES[config.method].pools_data:
        return each
    joined = type(each[0].train).join([p.train for p in each])
    return [Participant("all", joined, sum(p.steps for p in each))]


def train_clients(
    world: World,
    config: RunConfig,
    X: Tensor | Mapping[int, Tensor],
    who: Sequence[int],
    t: int,
    on_step: Callable[[], object] = lambda: None,
) -> dict[int, Trained]:
    """Local training in round t of the participants `who`, by number, each from its row of X (N, P); X may
    have these alone.

    The first round's is remembered, since many methods begin with it.
    """
    everybody = participants(world, config)
    strategy, kind = STRATEGIES[config.method], world.model.adapter.kind
    phases = strategy.phases(world.model.adapter_names, kind, config, t)
    training = config.model_dump_json(exclude=AFTER_TRAINING)
    trained: dict[int, Trained] = {}
    for group in cohorts({k: everybody[k] for k in who}, config, world.model.backbone.device):
        clients, states = [everybody[k] for k in group], [world.model.spec.named(X[k]) for k in group]
        compute = functools.partial(_trained, world, config, states, clients, phases, t, on_step)
        if t > 1:
            found = compute()
        else:
            names = tuple((client.name, client.steps) for client in clients)
            rows = hash_of({"X": torch.stack([X[k] for k in group])})
            key = ("train", names, rows, tuple(phases), strategy.proximal(config), training)
            found = world.remembered(key, compute)
        trained |= dict(zip(group, found, strict=True))
    return {k: trained[k] for k in who}


def _trained(
    world: World,
    config: RunConfig,
    states: list[State],
    clients: list[Participant],
    phases: list[Phase],
    t: int,
    on_step: Callable[[], object],
) -> list[Trained]:
    """The clients after all phases of a round; they take as many steps as each other."""
    found = [Trained(state, [], 0.0) for state in states]
    for i, phase in enumerate(phases):
        steps = clients[0].steps * (i + 1) // len(phases) - clients[0].steps * i // len(phases)
        if not steps:
            continue
        again = (i,) if i else ()  # the first phase's batches are those of a round of one phase
        seeds = [derive(config.seed, "batches", t, client.name, *again) for client in clients]
        how = {
            "steps": steps,
            "trains": (*phase.trains, *world.model.head_names),
            "share": phase.share,
            "proximal": STRATEGIES[config.method].proximal(config),
            "on_step": on_step,
        }
        before, datas = [each.state for each in found], [client.train for client in clients]
        if len(clients) == 1:
            parts = [train(world.model, before[0], datas[0], config, seed=seeds[0], **how)]
        else:
            parts = train_together(world.model, before, datas, config, seeds=seeds, **how)
        found = [
            Trained(part.state, each.losses + part.losses, each.seconds + part.seconds)
            for each, part in zip(found, parts, strict=True)
        ]
    return found
