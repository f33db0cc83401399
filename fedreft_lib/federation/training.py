"""The first part of a round: local training, in phases, of one client or of several clients in one pass."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from ..config import RunConfig
from ..config.fields import steps_per_round
from ..core.state import State
from ..core.training import Trained
from ..files import hash_of
from ..methods import METHODS
from ..methods.method import ALSO, DEFAULTS, Phase
from ..model.fast.cohort import train_together
from ..model.local_training import train_client
from ..model.steered import SteeredModel
from ..seeds import derive
from .assembly import Federation
from .engine import Participant, cohorts, rows_in_a_pass
from .work import Work, in_turn


def participants(federation: Federation, config: RunConfig, who: Sequence[int] | None = None) -> list[Participant]:
    """The clients, or those with the numbers `who`; for a method that pools data, one learner with as many steps as all
    clients together."""
    pools = METHODS[config.method].pools_data
    clients = federation.clients if who is None or pools else [federation.clients[k] for k in who]
    each = [Participant(c.name, c.train, steps_per_round(len(c.train), config)) for c in clients]
    if not pools:
        return each
    joined = type(each[0].train).join([p.train for p in each])
    return [Participant("all", joined, sum(p.steps for p in each))]


def train_clients(
    federation: Federation,
    config: RunConfig,
    states: Mapping[int, State],
    t: int,
    on_step: Callable[[], object] = lambda: None,
    work: Work = in_turn,
) -> dict[int, Trained]:
    """Local training in round t. states: of the participants that train, by number.

    The result of the first round is remembered, since many methods begin with the same training.
    """
    everybody, layout = participants(federation, config), federation.model.layout
    method = METHODS[config.method]
    phases = method.phases(layout.adapter_names, layout.kind, config, t)
    groups = cohorts({k: everybody[k] for k in states}, config, federation.model.backbone.device)
    tasks = [(group, [states[k] for k in group], t) for group in groups]

    def compute(places: Iterable[int]) -> list[list[Trained]]:
        return work(train_group, federation, config, [tasks[i] for i in places], on_step)

    keys = [
        (
            "train",
            tuple((everybody[k].name, everybody[k].steps) for k in group),
            tuple(hash_of(states[k]) for k in group),
            tuple(phases),
            _own_training(config),
            str(config.parameters_of("training")),
            config.rounds if config.schedule_over == "rounds" else None,
            everybody[group[0]].last_token,
        )
        for group in (groups if t == 1 else ())
    ]
    found = federation.remembered(keys, compute) if t == 1 else compute(range(len(tasks)))
    trained = {
        k: each for group, together in zip(groups, found, strict=True) for k, each in zip(group, together, strict=True)
    }
    return {k: trained[k] for k in states}


def train_group(
    federation: Federation,
    config: RunConfig,
    group: Sequence[int],
    states: list[State],
    t: int,
    on_step: Callable[[], object],
) -> list[Trained]:
    """The clients of a group after all phases of round t, with what the method makes of them before and after."""
    method, model, seeds = METHODS[config.method], federation.model, [config.seed] * len(group)
    clients = participants(federation, config, group)
    phases = method.phases(model.layout.adapter_names, model.layout.kind, config, t)
    if method.trains_as_usual:
        return _trained(model, config, states, clients, seeds, phases, t, on_step)
    of = [federation.clients[k] for k in group]
    prepared = [method.prepare(model, config, state, own, t) for state, own in zip(states, of, strict=True)]
    found = _trained(model, config, states, clients, seeds, phases, t, on_step, prepared)
    others = [other for state in states if (other := method.also(config, state, t))]
    if others:
        again = _trained(model, config, others, clients, seeds, phases, t, lambda: None, prepared)
        prepared = [
            {**ready, **{ALSO + name: tensor for name, tensor in each.state.items()}}
            for ready, each in zip(prepared, again, strict=True)
        ]
        found = [replace(one, seconds=one.seconds + each.seconds) for one, each in zip(found, again, strict=True)]
    each = zip(states, found, prepared, of, strict=True)
    return [
        replace(trained, state={**trained.state, **method.after(model, config, before, trained, ready, own, t)})
        for before, trained, ready, own in each
    ]


def _own_training(config: RunConfig) -> str:
    """What a method's own hooks of local training depend on; "" where it has none."""
    method = METHODS[config.method]
    return "" if method.trains_as_usual else f"{method.name} {config.parameters_of('hooks')}"


def train_runs(
    requests: Sequence[tuple[Federation, RunConfig, Mapping[int, State]]], t: int
) -> list[dict[int, Trained]]:
    """`train_clients` for each of several runs, where clients of all runs that train alike share passes.

    They do if their texts are read at their last tokens (engine.py), and what is kept of the texts, the adapter, the
    recipe, the phases and the steps are the same; data, seeds, states and everything after training may differ.
    """
    found: list[dict[int, Trained]] = [{} for _ in requests]
    alike: dict[tuple, list[tuple[int, int, State, Participant]]] = {}
    for i, (federation, config, states) in enumerate(requests):
        everybody, model, method = participants(federation, config), federation.model, METHODS[config.method]
        by_itself = method.one_by_one or method.after is not DEFAULTS.after
        if by_itself or not all(client.last_token for client in everybody):
            found[i] = train_clients(federation, config, states, t)
            continue
        phases = tuple(method.phases(model.layout.adapter_names, model.layout.kind, config, t))
        for k, state in states.items():
            client = everybody[k]
            kept, span = client.train.last[0][0], config.schedule_part(client.steps, t)
            # The adapter, not the shapes of its states: those of other layers or another intervention may be equal.
            key = kept, model.adapter, config.recipe, phases, _own_training(config), client.steps, span
            alike.setdefault(key, []).append((i, k, state, client))
    for (_, _, _, phases, *_), members in alike.items():
        federation, config, _ = requests[members[0][0]]
        most = rows_in_a_pass(config, federation.model.backbone.device, last_token=True) // config.batch_size
        for first in range(0, len(members), most):
            some = members[first : first + most]
            seeds = [requests[i][1].seed for i, *_ in some]
            states, clients = [state for *_, state, _ in some], [client for *_, client in some]
            done = _trained(federation.model, config, states, clients, seeds, list(phases), t, lambda: None)
            for (i, k, *_), each in zip(some, done, strict=True):
                found[i][k] = each
    return found


def _trained(
    model: SteeredModel,
    config: RunConfig,
    states: list[State],
    clients: list[Participant],
    run_seeds: Sequence[int],
    phases: list[Phase],
    t: int,
    on_step: Callable[[], object],
    prepared: Sequence[State] = (),
) -> list[Trained]:
    """The clients after all phases of a round. All of them take the same number of steps. run_seeds: of their runs.

    prepared: `Method.prepare` of each client, where they train one by one.
    """
    found = [Trained(state, [], 0.0) for state in states]
    for i, phase in enumerate(phases):
        steps = clients[0].steps * (i + 1) // len(phases) - clients[0].steps * i // len(phases)
        if not steps:
            continue
        again = (i,) if i else ()  # the first phase has the batches of a round with one phase
        seeds = [derive(s, "batches", t, c.name, *again) for s, c in zip(run_seeds, clients, strict=True)]
        ready = prepared[0] if prepared else {}
        parts = _phase(model, config, [each.state for each in found], clients, phase, steps, t, seeds, on_step, ready)
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
    t: int,
    seeds: Sequence[int],
    on_step: Callable[[], object],
    ready: State,
) -> list[Trained]:
    method = METHODS[config.method]
    how = {
        "steps": steps,
        **dict(zip(("before", "of"), config.schedule_part(steps, t), strict=True)),
        "trains": (*phase.trains, *model.layout.head_names),
        "penalty": method.penalty(config),
        "on_step": on_step,
    }
    if len(clients) > 1:
        datas = [client.train for client in clients]
        return train_together(model, states, datas, config.recipe, seeds=seeds, share=phase.share, **how)
    (state,), (client,), (seed,) = states, clients, seeds
    share = ready[phase.share] if isinstance(phase.share, str) else phase.share
    how |= {"share": share, "weights": ready[phase.weights] if phase.weights else None}
    return [train_client(model, state, client.train, config, seed=seed, optimiser=method.optimiser(config), **how)]
