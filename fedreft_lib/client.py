"""What a client does in a round: it trains, sends some of what it learned, and takes in what it is told.

    before  -- local training -->  learned  -- sends, is answered -->  takes in lam of the answer, retracts R  --> after

All of it needs the client's own data and nobody else's, so it is the same code where all clients live in one process
and where each has a machine of its own.
"""

from dataclasses import dataclass, field

from . import evaluate, hostile, mixing
from .admission import Update, refusal
from .config import RunConfig
from .gauge import align
from .interventions import State
from .local import Trained
from .randomness import derive
from .rotation import orthonormality_error, retract
from .states import Spec
from .steering import SteeredModel
from .strategies import STRATEGIES
from .training import Participant
from .worlds import World


@dataclass(frozen=True)
class Learned:
    """A client that has trained: its state, what it sends of it, and how training went.

    fault: what the client itself finds wrong with what it does not send.
    """

    state: State
    update: Update
    fault: str | None
    loss: float
    seconds: float


@dataclass(frozen=True)
class Taken:
    """A client that has been answered: its next state, the share lam, the held-out loss of each candidate for it where
    it was chosen by that, and how far R is from orthonormal before and after retraction, where there is one."""

    state: State
    lam: float
    losses: dict[float, float] = field(default_factory=dict)
    errors: tuple[float, ...] = ()


def common_start(model: SteeredModel, config: RunConfig) -> State:
    """What the seed alone says of the start."""
    return model.start(config.init, derive(config.seed, "start"))


def sent_names(model: SteeredModel, config: RunConfig) -> tuple[str, ...]:
    """What a client sends: what its method says, and the head unless that is private."""
    strategy = STRATEGIES[config.method]
    if not strategy.aggregate:
        return ()
    head = () if config.head == "private" else model.head_names
    return (*strategy.sends(model.adapter_names, model.adapter.kind, config), *head)


def sent_spec(model: SteeredModel, config: RunConfig) -> Spec:
    """The spec of what a client sends."""
    return part(model.spec, sent_names(model, config))


def learned(
    model: SteeredModel, config: RunConfig, k: int, t: int, client: Participant, before: State, trained: Trained
) -> Learned:
    """What client k (from 0) makes of its training in round t; a hostile one sends what its attack says."""
    state = align(trained.state, common_start(model, config)) if config.align else trained.state
    names = sent_names(model, config)
    sent = {name: state[name] for name in state if name in names}
    update = Update(client.name, sent, len(client.train))
    if sent:
        origin = {name: before[name] for name in sent}
        update = hostile.sent_by(config, k, client.name, t, origin, sent, len(client.train))
    kept = {name: tensor for name, tensor in state.items() if name not in names}
    stays = tuple(name for name, _ in model.spec.shapes if name not in names)
    fault = refusal(kept, len(client.train), part(model.spec, stays))
    loss = sum(trained.losses) / len(trained.losses)
    return Learned({**state, **update.state}, update, fault, loss, trained.seconds)


def take_in(world: World, config: RunConfig, k: int, t: int, state: State, answer: State | None) -> Taken:
    """Client k's next state, from what it learned (what it had, where its update was refused) and what it is told."""
    if answer is None:  # its method has no server
        return _ended(world.model, config, state, 0.0)
    rule = STRATEGIES[config.method].mixing(config)
    if rule == "scheduled":
        rule = mixing.scheduled(config, t)
    if rule != "adaptive":
        return taken(world.model, config, t, state, answer, float(rule))

    def held_out_loss(place: int, lam: float) -> float:
        after = taken(world.model, config, t, state, answer, lam).state
        return evaluate.loss(world.model, after, world.clients[k].held_out, config.batch_size)

    lam, losses = mixing.adaptive(config.mixing_grid, 1, held_out_loss)
    tried = dict(zip(sorted(set(config.mixing_grid)), losses[0].tolist(), strict=True))
    return taken(world.model, config, t, state, answer, float(lam[0]), tried)


def taken(
    model: SteeredModel, config: RunConfig, t: int, state: State, answer: State, lam: float, losses: dict | None = None
) -> Taken:
    """The client's side for a given lam: the head's mean whole, everything else as the method has it. What becomes of
    the tensors that are sent depends on those alone, so who knows them (the server) knows what becomes of them."""
    apart = model.head_names if config.head == "averaged" else ()
    rest = {name: tensor for name, tensor in answer.items() if name not in apart}
    after = STRATEGIES[config.method].take_in(model, state, rest, lam, config, t)
    return _ended(model, config, {**after, **{name: answer[name] for name in apart}}, lam, losses)


def _ended(model: SteeredModel, config: RunConfig, state: State, lam: float, losses: dict | None = None) -> Taken:
    rotated = model.adapter.rotated
    after = {**state, **{name: retract(state[name], config.retraction) for name in rotated}}
    errors = [max(orthonormality_error(each[name]) for name in rotated) for each in (state, after) if rotated]
    return Taken(after, lam, losses or {}, tuple(errors))


def part(spec: Spec, names: tuple[str, ...]) -> Spec:
    """The spec of some of a state's tensors, in its order."""
    return Spec(tuple(each for each in spec.shapes if each[0] in names))
