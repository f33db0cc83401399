"""Admission: the server checks every update before it aggregates.

A refused update is left out of the round, with a reason. Its client continues from the state that it had before, is
nobody's "other" in that round, and still receives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.state import Spec, State, is_finite

# An example count above this many times the cohort's (lower) median is not honest.
MOST_EXAMPLES = 1000


@dataclass(frozen=True)
class Update:
    """What reaches the server from a client: its state and the number of examples behind it."""

    client: str
    state: State
    examples: float


def refusals(
    updates: Sequence[Update],
    before: Sequence[State],
    spec: Spec,
    norm_limit: float,
    train_size: int,
    told: Sequence[str] = (),
) -> list[str | None]:
    """For each update, why it must not be aggregated, or None.

    Each update is first checked by itself (`refusal`), then against the rest of the cohort. Its distance from `before`
    (its client's state at the round's start) must be at most `norm_limit` times the lower median of all distances. Its
    example count must be at most MOST_EXAMPLES times the lower median count, or at most `train_size`. With the lower
    median, the smaller of two updates is the measure. told: names of tensors that are no part of these distances.
    """
    found = [refusal(update.state, update.examples, spec) for update in updates]
    left = [i for i, reason in enumerate(found) if reason is None]
    if not left:
        return found
    moved = {i: {name: tensor for name, tensor in updates[i].state.items() if name not in told} for i in left}
    steps = {i: _distance(moved[i], before[i]) for i in left}
    usual_step = _lower_median(list(steps.values()))
    usual_count = _lower_median([updates[i].examples for i in left])
    for i in left:
        # Where most clients did not move at all, only the norm of the states can measure a step.
        usual = usual_step or _norm(before[i]) or 1.0
        if steps[i] > norm_limit * usual:
            found[i] = f"its update's norm of {steps[i]:.1e} is beyond {norm_limit:g} times the usual {usual:.1e}"
        elif updates[i].examples > max(MOST_EXAMPLES * usual_count, train_size):
            found[i] = f"its example count of {updates[i].examples:g} is beyond {MOST_EXAMPLES} times the usual"
    return found


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
        if not is_finite(update[name]):
            return f"{name} has values that are not finite"
    if not (math.isfinite(examples) and examples > 0):
        return f"its example count is {examples}"
    return None


def _distance(a: State, b: State) -> float:
    return _norm({name: a[name].double() - b[name].double() for name in a})


def _norm(state: State) -> float:
    """The norm of all numbers together; in float64, since in float32 the square of 1e30 is infinite."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in state.values()))


def _lower_median(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]
