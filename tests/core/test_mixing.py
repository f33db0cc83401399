"""The mixing weight lam: scheduled as said, adaptive as brute force would choose."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib import RunConfig
from fedreft_lib.core.mixing import adaptive, scheduled

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(("first", "last"), [(0.0, 1.0), (1.0, 0.0), (0.1, 0.7), (0.3, 0.3)])
@pytest.mark.parametrize("rounds", [1, 2, 3, 7, 30])
def test_a_schedule_goes_linearly_from_its_first_to_its_last_value(rounds, first, last):
    config = RunConfig(rounds=rounds, mixing="scheduled", mixing_range=(first, last))
    found = [scheduled(*config.mixing_range, t, rounds) for t in range(1, rounds + 1)]
    assert found[0] == first
    if rounds > 1:
        assert found == pytest.approx(torch.linspace(first, last, rounds, dtype=torch.float64).tolist(), abs=1e-12)
    assert all(0 <= lam <= 1 for lam in found)


LOSSES = st.lists(
    st.lists(st.sampled_from([NAN, INF, 0.0, -1.5, 0.25, 0.25 + 1e-12, 7.0]), min_size=6, max_size=6),
    min_size=1,
    max_size=5,
)
GRIDS = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=8)


@settings(deadline=None)
@given(GRIDS, LOSSES)
def test_adaptive_takes_the_smallest_loss_and_of_equal_ones_the_smaller_lam(grid, table):
    order = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
    lam, losses = adaptive(grid, len(table), lambda k, candidate: table[k][order.index(candidate)])
    candidates = sorted(set(grid))
    assert losses.shape == (len(table), len(candidates))
    for k, row in enumerate(table):
        ranked = []
        for candidate in candidates:
            loss = row[order.index(candidate)]
            ranked.append((math.isnan(loss), 0.0 if math.isnan(loss) else loss, candidate))  # NaN last, even after inf
        assert float(lam[k]) == pytest.approx(min(ranked)[2], abs=1e-7)


def test_a_loss_that_is_not_a_number_never_wins():
    lam, losses = adaptive([0.0, 0.5, 1.0], 2, lambda k, c: {0.0: NAN, 0.5: 9e9, 1.0: NAN if k else INF}[c])
    assert lam.tolist() == [0.5, 0.5] and bool(losses.isnan().any())  # the table keeps what was seen


def test_where_no_candidate_has_a_loss_the_smallest_lam_stays():
    assert adaptive([0.5, 0.0, 1.0], 1, lambda k, c: NAN)[0].tolist() == [0.0]


def test_every_candidate_is_asked_once_for_every_client():
    asked = []
    adaptive((0.5, 0.1, 0.5), 3, lambda k, c: asked.append((k, c)) or 0.0)
    assert sorted(asked) == [(k, c) for k in range(3) for c in (0.1, 0.5)]
