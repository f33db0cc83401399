"""Local training of one client: some optimiser steps on its state; nothing else changes.

The paper does not print its schedule. Reconstruction: AdamW, linear warm-up and decay, gradient clipping, and a new
optimiser each round, as in the reference code of the paper's baselines. Theirs also starts the learning rate anew each
round; here it falls over all rounds, unless one asks otherwise, which leaves less of the optimiser's noise in the last
states.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .rotation import Rotation
from .state import State

# (phi, start, moving, step, steps) -> what is added to a step's loss: the state, the state at the round's start, the
# names of the tensors that move, and which of the round's steps this is, from 1. States may be stacked, (K, ...); then
# it is the sum over them.
Penalty = Callable[[State, State, Sequence[str], int, int], Tensor]
Optimise = Callable[..., tuple[State, list[Tensor]]]


@dataclass(frozen=True)
class Recipe:
    """How a client trains. RunConfig has the same fields, with the reason for each default."""

    lr: float = 2e-3
    batch_size: int = 8
    schedule: str = "linear"  # or "constant"
    warmup: float = 0.1
    weight_decay: float = 0.0
    decayed: tuple[str, ...] = ("W", "b")
    clip: float = 1.0
    optimiser: str = "adamw"  # or "sgd"


@dataclass(frozen=True)
class Trained:
    """The result of local training: the new state, the loss of each step, and the time in seconds."""

    state: State
    losses: list[float]
    seconds: float


class Trainable:
    """What the optimiser moves: coordinates A for each R that stays orthonormal, and every other tensor itself.

    rotated: names of the tensors that stay orthonormal. trains: names of the tensors that move (None: all); the others
    do not change. complement: see Rotation, for a single rotated tensor.
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
        """The current state, differentiable in the tensors that move."""
        here = {**self.fixed, **self.free, **{n: rotate(self.free[n]) for n, rotate in self.rotations.items()}}
        return {name: here[name] for name in self.names}

    def groups(self, weight_decay: float, decayed: tuple[str, ...]) -> list[dict]:
        """The optimiser's parameter groups. R never decays: decay would pull A to 0, the R of the round's start."""
        decays = {n for n in self.free if n.rsplit(".", 1)[-1] in decayed and n not in self.rotations}
        return [
            {"params": [t for n, t in self.free.items() if n in decays], "weight_decay": weight_decay},
            {"params": [t for n, t in self.free.items() if n not in decays], "weight_decay": 0.0},
        ]


def train(
    state: State,
    losses_of: Callable[[Sequence[int], State], Tensor],
    examples: int,
    recipe: Recipe,
    *,
    steps: int,
    seed: int,
    before: int = 0,
    of: int | None = None,
    rotated: Sequence[str] = (),
    trains: Sequence[str] | None = None,
    penalty: Penalty | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] = lambda: None,
    optimiser: Optimise | None = None,
) -> Trained:
    """`steps` steps of the optimiser on the mean loss of a batch, from `state`.

    losses_of(indices, state): the losses (M,) of some of the `examples`, differentiable in the state. seed: of the
    batches. before, of: these are steps before + 1 to before + steps of a schedule of `of` steps; default: all of it.
    rotated, trains: see Trainable. penalty: added to each step's loss. device: where the state trains; it returns on
    the CPU. optimiser: a function like `optimise`, in its place.

    On a CPU, equal arguments give equal bits. A loss that is not finite raises nothing: admission refuses its state.
    """
    began = time.perf_counter()
    plan = batches(examples, recipe.batch_size, steps, seed)
    trained, losses = (optimiser or optimise)(
        state,
        lambda step, phi: losses_of(plan[step], phi).mean(),
        recipe,
        steps=steps,
        before=before,
        of=of,
        rotated=rotated,
        trains=trains,
        penalty=penalty,
        device=device,
        on_step=on_step,
    )
    return Trained(trained, [float(loss) for loss in losses], time.perf_counter() - began)


def optimise(
    state: State,
    loss_at: Callable[[int, State], Tensor],
    recipe: Recipe,
    *,
    steps: int,
    before: int,
    of: int | None,
    rotated: Sequence[str],
    trains: Sequence[str] | None,
    penalty: Penalty | None,
    device: torch.device | str,
    on_step: Callable[[], object],
    clip: Callable[[list[Tensor], float], object] = nn.utils.clip_grad_norm_,
) -> tuple[State, list[Tensor]]:
    """The optimiser's loop: the state after `steps` steps on loss_at(step, state), and the loss of each step.

    It also takes K states stacked, (K, ...), with their losses (K,) and a `clip` that clips each by itself. All else
    works number by number, or is a sum whose gradient is each state's own.
    """
    origin = {name: tensor.to(device) for name, tensor in state.items()}
    trainable = Trainable(origin, rotated=rotated, trains=trains)
    kind = torch.optim.SGD if recipe.optimiser == "sgd" else torch.optim.AdamW
    optimiser = kind(trainable.groups(recipe.weight_decay, recipe.decayed), lr=recipe.lr)
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:  # no torch scheduler: it makes the optimiser refer to itself
            group["lr"] = recipe.lr * learning_rate(before + step, of or steps, recipe.warmup, recipe.schedule)
        phi = trainable.state()
        loss = loss_at(step, phi)
        objective = loss.sum()
        if penalty:
            objective = objective + penalty(phi, origin, tuple(trainable.free), step + 1, steps)
        optimiser.zero_grad(set_to_none=True)
        objective.backward()
        clip(list(trainable.free.values()), recipe.clip)
        optimiser.step()
        losses.append(loss.detach())
        on_step()
    with torch.no_grad():
        return {name: tensor.detach().to("cpu") for name, tensor in trainable.state().items()}, losses


def learning_rate(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Factor on lr at `step` (from 0) of `steps`: it rises over the warm-up share, then falls linearly or stays 1."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 1.0 if schedule == "constant" else (steps - step) / (steps - rising)


def batches(examples: int, size: int, steps: int, seed: int) -> list[list[int]]:
    """Indices of `steps` batches: a new shuffle for each pass over the examples; a pass's last batch may be small."""
    generator = torch.Generator().manual_seed(seed)
    chosen: list[list[int]] = []
    while len(chosen) < steps:
        order = torch.randperm(examples, generator=generator).tolist()
        chosen += [order[i : i + size] for i in range(0, examples, size)]
    return chosen[:steps]
