"""What a client does in a round: it trains, sends an update, receives an answer and mixes it in.

    before  -- local training -->  trained  -- sends, receives -->  mixes in a share lam, retracts R  -->  after

A client needs only its own data. So the same code runs for all clients in one process, and on a machine for each.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..config import RunConfig
from ..core import mixing
from ..core.rotation import align, orthonormality_error, retract
from ..core.state import Layout, Spec, State
from ..core.training import Trained
from ..methods import METHODS
from ..methods.method import KEPT, TOLD
from ..model import scoring
from ..model.encoding import Client
from ..model.steered import SteeredModel
from ..seeds import derive
from . import attacks
from .admission import Update, refusal


@dataclass(frozen=True)
class ClientUpdate:
    """A client after training."""

    state: State
    update: Update  # what it sends
    fault: str | None  # what the client itself finds wrong with the tensors that it keeps
    loss: float  # the mean over its steps
    seconds: float  # of training


@dataclass(frozen=True)
class ClientResult:
    """A client after its answer."""

    state: State  # for the next round
    lam: float  # the share that it mixed in
    losses: dict[float, float] = field(default_factory=dict)  # held-out loss of each candidate lam, where it tried any
    errors: tuple[float, ...] = ()  # how far R was from orthonormal, before and after retraction


def common_start(layout: Layout, config: RunConfig) -> State:
    """The state that all clients start from: it depends on the seed only."""
    return layout.start(config.init, derive(config.seed, "start"))


def begun(model: SteeredModel, config: RunConfig, k: int, state: State, client: Client) -> State:
    """The state with which client k (from 0) begins, from the common start."""
    return {**state, **METHODS[config.method].start(model, config, k, state, client)}


def sent_names(layout: Layout, config: RunConfig) -> tuple[str, ...]:
    """Names of the tensors that a client sends: its method's choice, the head unless it is private, sent extras."""
    method = METHODS[config.method]
    if not method.aggregate:
        return ()
    head = () if config.head == "private" else layout.head_names
    extras = (name for name in layout.extras if not name.startswith(KEPT))
    return (*method.sends(layout.adapter_names, layout.kind, config), *head, *extras)


def is_told(name: str) -> bool:
    """Whether a client only reports this tensor: it is checked, but is no part of what is aggregated."""
    return name.startswith(TOLD)


def sent_spec(layout: Layout, config: RunConfig) -> Spec:
    """Names and shapes of the tensors that a client sends."""
    return layout.spec.part(sent_names(layout, config))


def make_update(
    layout: Layout,
    config: RunConfig,
    k: int,
    t: int,
    *,
    name: str,
    examples: int,
    before: State,
    trained: Trained,
) -> ClientUpdate:
    """The update of client k (from 0) after training in round t. A hostile client sends its attack instead."""
    state = align(trained.state, common_start(layout, config)) if config.align else trained.state
    names = sent_names(layout, config)
    sent = {tensor: state[tensor] for tensor in state if tensor in names}
    update = Update(name, sent, examples)
    if sent:
        moved = {tensor: value for tensor, value in sent.items() if not is_told(tensor)}
        origin = {tensor: before[tensor] for tensor in moved}
        update = attacks.sent_by(config, k, name, t, origin, moved, examples)
        update = replace(update, state={**update.state, **{n: value for n, value in sent.items() if is_told(n)}})
    kept = {tensor: value for tensor, value in state.items() if tensor not in names}
    fault = refusal(kept, examples, layout.spec.part([tensor for tensor in layout.spec.names if tensor not in names]))
    loss = sum(trained.losses) / len(trained.losses)
    return ClientUpdate({**state, **update.state}, update, fault, loss, trained.seconds)


def take_answer(
    model: SteeredModel, config: RunConfig, client: Client | None, t: int, state: State, answer: State | None
) -> ClientResult:
    """A client's next state, from `state` (what it learned, or had before if its update was refused) and its answer.

    client: its held-out items choose lam where mixing="adaptive". answer: None where the method has no server.
    """
    layout = model.layout
    if answer is None:
        return _retracted(layout, config, state, 0.0)
    rule = METHODS[config.method].mixing(config)
    if rule == "scheduled":
        rule = mixing.scheduled(*config.mixing_range, t, config.rounds)
    if rule != "adaptive":
        return apply_answer(layout, config, t, state, answer, float(rule))

    candidates = sorted(set(config.mixing_grid))
    after = [apply_answer(layout, config, t, state, answer, lam).state for lam in candidates]
    compare = scoring.losses if config.adaptive_by == "loss" else scoring.calibrated_losses
    found = dict(zip(candidates, compare(model, after, client.held_out, config.batch_size), strict=True))
    lam, losses = mixing.adaptive(config.mixing_grid, 1, lambda place, lam: found[lam])
    tried = dict(zip(candidates, losses[0].tolist(), strict=True))
    return apply_answer(layout, config, t, state, answer, float(lam[0]), tried)


def apply_answer(
    layout: Layout, config: RunConfig, t: int, state: State, answer: State, lam: float, losses: dict | None = None
) -> ClientResult:
    """The next state for a given lam. The method mixes in the answer; an averaged head is taken whole.

    The new values of the sent tensors depend only on sent tensors, so a server can compute them too.
    """
    apart = layout.head_names if config.head == "averaged" else ()
    rest = {name: tensor for name, tensor in answer.items() if name not in apart}
    after = METHODS[config.method].apply_answer(layout, state, rest, lam, config, t)
    return _retracted(layout, config, {**after, **{name: answer[name] for name in apart}}, lam, losses)


def _retracted(layout: Layout, config: RunConfig, state: State, lam: float, losses: dict | None = None) -> ClientResult:
    rotated = layout.rotated
    after = {**state, **{name: retract(state[name], config.retraction) for name in rotated}}
    errors = [max(_error(each[name]) for name in rotated) for each in (state, after) if rotated]
    return ClientResult(after, lam, losses or {}, tuple(errors))


def _error(R: Tensor) -> float:
    """`orthonormality_error` of a copy: products are rounded by where in memory a tensor begins, and a node's R is a
    part of the row that it has read."""
    return orthonormality_error(R.clone(memory_format=torch.contiguous_format))
