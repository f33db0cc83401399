"""The door: every update is looked at before it touches anyone.

An update that is refused is set aside for the round with its reason; the client goes on from the state that it had.
"""

import math

import torch

from .interventions import State
from .states import Spec


def refusal(update: State, examples: float, spec: Spec) -> str | None:
    """Why an update must not be aggregated, or None: names, dtype, shapes, finite values, a usable example count."""
    shapes = dict(spec.shapes)
    if set(update) != set(shapes):
        return f"has the tensors {sorted(update)} where {sorted(shapes)} are expected"
    for name, shape in shapes.items():
        if update[name].dtype != torch.float32:
            return f"{name} is {update[name].dtype} where torch.float32 is expected"
        if tuple(update[name].shape) != shape:
            return f"{name} has the shape {tuple(update[name].shape)} where {shape} is expected"
        if not bool(update[name].isfinite().all()):
            return f"{name} has values that are not finite"
    if not (math.isfinite(examples) and examples > 0):
        return f"its example count is {examples}"
    return None
