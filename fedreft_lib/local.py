"""Local training of one client: its state, its data, some optimiser steps; nothing else changes.

Reconstruction, as the paper's schedule is not printed: AdamW, linear warm-up and decay within the round, gradient
clipping; the optimiser is made anew each round, as the reference code of the paper's baselines does.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import RunConfig
from .encoded import Answers, Labels
from .interventions import State
from .rotation import Rotation
from .schedule import batches, learning_rate
from .steering import SteeredModel


@dataclass(frozen=True)
class Trained:
    """What local training returns: the new state, the loss of each step, and how long it took (seconds)."""

    state: State
    losses: list[float]
    seconds: float


class Coordinates:
    """What the optimiser moves: A in place of an R that is kept orthonormal, and every other tensor as it is.

    rotated: names of the tensors that are kept orthonormal. trains: names of those that move (None: all); the others
    stay as they are. complement: see Rotation, for a single rotated tensor.
    """

    def __init__(
        self,
        state: State,
        *,
        rotated: Sequence[str] = (),
        trains: Sequence[str] | None = None,
        complement: Tensor | None = None,
    ):
        moving = set(state if trains is None else trains)
        self.rotations = {name: Rotation(state[name], complement) for name in rotated if name in moving}
        self.fixed = {name: tensor for name, tensor in state.items() if name not in moving}
        self.free = {
            name: self.rotations[name].start() if name in self.rotations else tensor.detach().clone()
            for name, tensor in state.items()
            if name in moving
        }
        for tensor in self.free.values():
            tensor.requires_grad_()
        self.names = tuple(state)

    def state(self) -> State:
        """The state at the present coordinates, differentiable in them."""
        here = {**self.fixed, **self.free, **{n: rotate(self.free[n]) for n, rotate in self.rotations.items()}}
        return {name: here[name] for name in self.names}

    def groups(self, weight_decay: float, decayed: tuple[str, ...]) -> list[dict]:
        """AdamW's parameter groups. R is never decayed: A has its own origin, and see trap 1 of RunConfig.decayed."""
        decays = {n for n in self.free if n.rsplit(".", 1)[-1] in decayed and n not in self.rotations}
        return [
            {"params": [t for n, t in self.free.items() if n in decays], "weight_decay": weight_decay},
            {"params": [t for n, t in self.free.items() if n not in decays], "weight_decay": 0.0},
        ]


def train(
    model: SteeredModel,
    state: State,
    data: Answers | Labels,
    config: RunConfig,
    *,
    steps: int,
    seed: int,
    trains: Sequence[str] | None = None,
    share: float | None = None,
    proximal: float = 0.0,
    on_step: Callable[[], object] = lambda: None,
) -> Trained:
    """`steps` steps of AdamW on the mean loss of a batch (an answer's tokens, or labels), from `state`.

    trains: the tensors that move, all of them by default. share: of the local branch, for states that have one.
    proximal: FedProx's mu; mu / 2 times the squared distance to `state`, over the tensors that move, is added.

    The same arguments give the same bits on a CPU. Raises nothing of its own: a loss that is not finite shows in
    the state and is refused at admission.
    """
    began = time.perf_counter()
    plan = batches(len(data), config.batch_size, steps, seed)

    def loss_at(step: int, phi: State) -> Tensor:
        return data.losses(model, plan[step], phi, share=share, dropout=config.dropout).mean()

    with torch.random.fork_rng(enabled=config.dropout > 0):
        if config.dropout > 0:
            torch.manual_seed(seed)  # dropout alone draws from torch's own generator
        trained, losses = descend(
            model, state, config, loss_at, steps=steps, trains=trains, proximal=proximal, on_step=on_step
        )
    return Trained(trained, [float(loss) for loss in losses], time.perf_counter() - began)


def descend(
    model: SteeredModel,
    state: State,
    config: RunConfig,
    loss_at: Callable[[int, State], Tensor],
    *,
    steps: int,
    trains: Sequence[str] | None,
    proximal: float,
    on_step: Callable[[], object],
    clip: Callable[[list[Tensor], float], object] = nn.utils.clip_grad_norm_,
) -> tuple[State, list[Tensor]]:
    """The optimiser's loop: the state after `steps` steps on loss_at(step, state), and the loss of each step.

    cohort.py gives it many states as one, (K, ...), their losses (K,), and a `clip` that knows them apart: all else
    here works number by number, or is a sum whose gradient is each state's own.
    """
    origin = {name: tensor.to(model.backbone.device) for name, tensor in state.items()}
    coordinates = Coordinates(origin, rotated=model.adapter.rotated, trains=trains)
    optimiser = torch.optim.AdamW(coordinates.groups(config.weight_decay, config.decayed), lr=config.lr)
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:  # not by a scheduler of torch's: it makes the optimiser refer to itself
            group["lr"] = config.lr * learning_rate(step, steps, config.warmup, config.schedule)
        phi = coordinates.state()
        loss = loss_at(step, phi)
        objective = loss.sum()
        if proximal:
            objective = objective + proximal / 2 * sum((phi[n] - origin[n]).square().sum() for n in coordinates.free)
        optimiser.zero_grad(set_to_none=True)
        objective.backward()
        clip(list(coordinates.free.values()), config.clip)
        optimiser.step()
        losses.append(loss.detach())
        on_step()
    with torch.no_grad():
        return {name: tensor.detach().to("cpu") for name, tensor in coordinates.state().items()}, losses
