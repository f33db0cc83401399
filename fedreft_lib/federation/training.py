"""The first part of a round: local training, in phases, of one client or of several clients in one pass."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from ..config import RunConfig
from ..core.state import State
from ..core.training import Trained, train
from ..files import hash_of
from ..methods import METHODS
from ..methods.method import Phase
from ..model.encoding import AnswerSet, LabelSet
from ..model.fast.cohort import train_together
from ..model.steered import SteeredModel
from ..seeds import derive
from .assembly import Federation
from .engine import Participant, cohorts


def steps_per_round(examples: int, config: RunConfig) -> int:
    """local_steps, or the steps of local_epochs passes over the examples."""
    return config.local_steps or config.local_epochs * math.ceil(examples / config.batch_size)


def participants(federation: Federation, config: RunConfig) -> list[Participant]:
    """The clients; for a method that pools data, one learner with as many steps as all clients together."""
    each = [Participant(c.name, c.train, steps_per_round(len(c.train), config)) for c in federation.clients]
    if not METHODS[config.method].pools_data:
        return each
    joined = type(each[0].train).join([p.train for p in each])
    return [Participant("all", joined, sum(p.steps for p in each))]


def train_clients(
    federation: Federation,
    config: RunConfig,
    states: Mapping[int, State],
    t: int,
    on_step: Callable[[], object] = lambda: None,
) -> dict[int, Trained]:
    """Local training in round t. states: of the participants that train, by number.

    The result of the first round is remembered, since many methods begin with the same training.
    """
    everybody, layout = participants(federation, config), federation.model.layout
    method = METHODS[config.method]
    phases = method.phases(layout.adapter_names, layout.kind, config, t)
    trained: dict[int, Trained] = {}
    for group in cohorts({k: everybody[k] for k in states}, config, federation.model.backbone.device):
        clients, own = [everybody[k] for k in group], [states[k] for k in group]
        compute = functools.partial(_trained, federation.model, config, own, clients, phases, t, on_step)
        if t > 1:
            found = compute()
        else:
            names = tuple((client.name, client.steps) for client in clients)
            starts = tuple(hash_of(state) for state in own)
            key = (
                "train",
                names,
                starts,
                tuple(phases),
                method.proximal(config),
                str(config.parameters_of("training")),
            )
            found = federation.remembered(key, compute)
        trained |= dict(zip(group, found, strict=True))
    return {k: trained[k] for k in states}


def _trained(
    model: SteeredModel,
    config: RunConfig,
    states: list[State],
    clients: list[Participant],
    phases: list[Phase],
    t: int,
    on_step: Callable[[], object],
) -> list[Trained]:
    """The clients after all phases of a round. All of them take the same number of steps."""
    found = [Trained(state, [], 0.0) for state in states]
    for i, phase in enumerate(phases):
        steps = clients[0].steps * (i + 1) // len(phases) - clients[0].steps * i // len(phases)
        if not steps:
            continue
        again = (i,) if i else ()  # the first phase has the batches of a round with one phase
        seeds = [derive(config.seed, "batches", t, client.name, *again) for client in clients]
        parts = _phase(model, config, [each.state for each in found], clients, phase, steps, seeds, on_step)
        found = [
            Trained(part.state, each.losses + part.losses, each.seconds + part.seconds)
            for each, part in zip(found, parts, strict=True)
        ]
    return found


def _phase(
    model: SteeredModel,
    config: RunConfig,
    states: list[State],
    clients: list[Participant],
    phase: Phase,
    steps: int,
    seeds: Sequence[int],
    on_step: Callable[[], object],
) -> list[Trained]:
    how = {
        "steps": steps,
        "trains": (*phase.trains, *model.layout.head_names),
        "proximal": METHODS[config.method].proximal(config),
        "on_step": on_step,
    }
    if len(clients) > 1:
        datas = [client.train for client in clients]
        return train_together(model, states, datas, config.recipe, seeds=seeds, share=phase.share, **how)
    (state,), (client,), (seed,) = states, clients, seeds
    return [train_client(model, state, client.train, config, seed=seed, share=phase.share, **how)]


def train_client(
    model: SteeredModel,
    state: State,
    data: AnswerSet | LabelSet,
    config: RunConfig,
    *,
    seed: int,
    share: float | None = None,
    **how,
) -> Trained:
    """`core.training.train` on one client's data. share: the local branch's, for states that have one."""

    def losses(indices: Sequence[int], phi: State) -> torch.Tensor:
        return data.losses(model, indices, phi, share=share, dropout=config.dropout)

    with torch.random.fork_rng(enabled=config.dropout > 0):
        if config.dropout > 0:
            torch.manual_seed(seed)  # only dropout draws from torch's global generator
        rotated, device = model.layout.rotated, model.backbone.device
        return train(state, losses, len(data), config.recipe, seed=seed, rotated=rotated, device=device, **how)
