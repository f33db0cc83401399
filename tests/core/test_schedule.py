"""How long a client trains, at which learning rate, on which batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib.core.training import batches, learning_rate

# ---- the schedule ---------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_over_the_warm_up_and_then_falls_linearly_or_stays():
    linear = [learning_rate(step, 10, 0.2, "linear") for step in range(10)]
    assert linear == pytest.approx([1 / 2, 1, 8 / 8, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    constant = [learning_rate(step, 10, 0.2, "constant") for step in range(10)]
    assert constant == pytest.approx([1 / 2] + 9 * [1])
    assert [learning_rate(step, 4, 0.0, "linear") for step in range(4)] == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4])


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0, 0.999), st.sampled_from(["linear", "constant"]))
def test_every_step_of_every_schedule_moves_and_none_by_more_than_lr(steps, warmup, schedule):
    factors = [learning_rate(step, steps, warmup, schedule) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors) and max(factors) == 1
    top = factors.index(1)
    assert factors[:top] == sorted(factors[:top]) and factors[top:] == sorted(factors[top:], reverse=True)


# ---- batches --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**40))
def test_every_pass_sees_every_example_once(examples, size, seed):
    per_pass = math.ceil(examples / size)
    found = batches(examples, size, 3 * per_pass, seed)
    passes = [found[i : i + per_pass] for i in range(0, len(found), per_pass)]
    for one in passes:
        assert sorted(i for batch in one for i in batch) == list(range(examples))
        assert all(len(batch) == size for batch in one[:-1])
    if examples > 9:
        assert passes[0] != passes[1]  # shuffled anew


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 9), st.integers(0, 20))
def test_batches_are_a_function_of_the_seed_and_a_longer_run_begins_alike(examples, size, seed, steps):
    torch.manual_seed(steps)
    found = batches(examples, size, steps, seed)
    torch.manual_seed(steps + 1)
    assert batches(examples, size, steps + 4, seed)[:steps] == found and len(found) == steps


def test_another_seed_gives_other_batches():
    assert len({str(batches(30, 4, 8, seed)) for seed in range(20)}) == 20
