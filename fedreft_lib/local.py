"""Local training of one client: its state, its data, some optimiser steps; nothing else changes.

Reconstruction, as the paper's schedule is not printed: AdamW, linear warm-up and decay within the round, gradient
clipping; the optimiser is made anew each round, as the reference code of the paper's baselines does.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .config import RunConfig
from .interventions import State
from .rotation import Rotation
from .steering import SteeredModel
from .worlds import Answers


@dataclass(frozen=True)
class Trained:
    """What local training returns: the new state, the loss of each step, and how long it took (seconds)."""

    state: State
    losses: list[float]
    seconds: float


class Coordinates:
    """What the optimiser moves: A in place of an R that is kept orthonormal, and every other tensor as it is."""

    def __init__(self, state: State, *, orthonormal: bool, complement: torch.Tensor | None = None):
        self.rotation = Rotation(state["R"], complement) if orthonormal else None
        self.free = {name: tensor.detach().clone() for name, tensor in state.items()}
        if self.rotation:
            self.free["R"] = self.rotation.start()
        for tensor in self.free.values():
            tensor.requires_grad_()

    def state(self) -> State:
        """The state at the present coordinates, differentiable in them."""
        return {**self.free, "R": self.rotation(self.free["R"])} if self.rotation else dict(self.free)

    def groups(self, weight_decay: float, decayed: tuple[str, ...]) -> list[dict]:
        """AdamW's parameter groups. R is never decayed: A has its own origin, and see trap 1 of RunConfig.decayed."""
        return [
            {"params": [t for n, t in self.free.items() if n in decayed and n != "R"], "weight_decay": weight_decay},
            {"params": [t for n, t in self.free.items() if n not in decayed or n == "R"], "weight_decay": 0.0},
        ]


def learning_rate(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Factor on lr at `step` of `steps` (from 0): rises over the warm-up share, then falls linearly or stays."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 1.0 if schedule == "constant" else (steps - step) / (steps - rising)


def train(
    model: SteeredModel,
    state: State,
    data: Answers,
    config: RunConfig,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[], object] = lambda: None,
) -> Trained:
    """`steps` steps of AdamW on the answers' cross-entropy (mean over a batch's answer tokens), from `state`.

    The same arguments give the same bits on a CPU. Raises nothing of its own: a loss that is not finite shows in
    the state and is refused at admission.
    """
    began = time.perf_counter()
    device = model.backbone.device
    coordinates = Coordinates({n: t.to(device) for n, t in state.items()}, orthonormal=model.intervention.orthonormal)
    optimiser = torch.optim.AdamW(coordinates.groups(config.weight_decay, config.decayed), lr=config.lr)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate(min(step, steps - 1), steps, config.warmup, config.schedule)
    )
    losses = []
    for indices in batches(len(data), config.batch_size, steps, seed):
        logprobs, _ = model.answer_logprobs(data.batch(model, indices), coordinates.state())
        loss = -logprobs.mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(coordinates.free.values()), config.clip)
        optimiser.step()
        rate.step()
        losses.append(float(loss.detach()))
        on_step()
    with torch.no_grad():
        trained = {name: tensor.detach().to("cpu") for name, tensor in coordinates.state().items()}
    return Trained(trained, losses, time.perf_counter() - began)


def steps_per_round(examples: int, config: RunConfig) -> int:
    """local_steps, or as many as local_epochs passes take."""
    return config.local_steps or config.local_epochs * math.ceil(examples / config.batch_size)


def batches(examples: int, size: int, steps: int, seed: int) -> list[list[int]]:
    """Indices of `steps` batches: a fresh shuffle for each pass over the examples; a pass's last batch may be small."""
    generator = torch.Generator().manual_seed(seed)
    chosen: list[list[int]] = []
    while len(chosen) < steps:
        order = torch.randperm(examples, generator=generator).tolist()
        chosen += [order[i : i + size] for i in range(0, examples, size)]
    return chosen[:steps]
