"""How long a client trains in a round, at which learning rate, on which batches."""

import math

import torch

from .config import RunConfig


def learning_rate(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Factor on lr at `step` of `steps` (from 0): rises over the warm-up share, then falls linearly or stays."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 1.0 if schedule == "constant" else (steps - step) / (steps - rising)


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
