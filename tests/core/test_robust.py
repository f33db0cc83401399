"""Robust rules of the others, against the plain rule on the rows with the client taken out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fedreft_lib.core import robust
from fedreft_lib.core.aggregation import AGGREGATIONS, all_but_me, mean
from fedreft_lib.core.robust import norm_clipped

ROBUST = [kind for kind in AGGREGATIONS if kind != "mean"]
BY_COORDINATE = ("trimmed_mean", "coordinate_median")


def draw(n, p, seed):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed))


def krum_scores(others, f):
    """Blanchard et al.'s: for each row, its squared distances to the nearest n - f - 2 of the others, summed."""
    squares = ((others[:, None] - others[None]) ** 2).sum(-1)
    count = max(1, len(others) - f - 2)
    return np.array([np.sort(np.delete(squares[i], i))[:count].sum() for i in range(len(others))])


def plain(kind, others, f):
    """The rule on the rows of `others` (n, P), with no thought of leaving anybody out."""
    n = len(others)
    if kind == "trimmed_mean":
        f = min(f, (n - 1) // 2)
        return trim_mean(others, (f + 0.5) / n if f else 0.0, axis=0)  # half a row more: no rounding below f
    if kind == "coordinate_median":
        return np.median(others, axis=0)
    best = np.argsort(krum_scores(others, f), kind="stable")
    return others[best[: max(1, n - f) if kind == "multi_krum" else 1]].mean(0)


@st.composite
def federations(draw_from):
    """X (N, P), weights with zeros that leave everybody another, and how many may be hostile."""
    n, p = draw_from(st.integers(2, 9)), draw_from(st.integers(1, 30))
    X = draw(n, p, draw_from(st.integers(0, 10**6)))
    weights = draw_from(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=n, max_size=n))
    for k in draw_from(st.lists(st.integers(0, n - 1), min_size=2, max_size=2, unique=True)):
        weights[k] = 1.0
    return X, torch.tensor(weights), draw_from(st.integers(0, 4))


@pytest.mark.parametrize("kind", ["trimmed_mean", "coordinate_median", "krum", "multi_krum"])
@settings(max_examples=50, deadline=None)
@given(federations())
def test_each_client_receives_the_plain_rule_on_the_others(kind, federation):
    X, weights, f = federation
    found = all_but_me(X, kind, weights, f)
    assert not found.A.diagonal().any() and not found.A[:, weights == 0].any() and not found.residual.any()
    torch.testing.assert_close(found.A.sum(1), torch.ones(len(X)))
    for k in range(len(X)):
        others = np.delete(X.double().numpy(), k, axis=0)[np.delete(weights.numpy(), k) > 0]
        assert found.aggregate[k].numpy() == pytest.approx(plain(kind, others, f), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", BY_COORDINATE)
@settings(max_examples=30, deadline=None)
@given(federations())
def test_shares_count_the_coordinates_that_were_taken(kind, federation):
    X, weights, f = federation
    found = all_but_me(X, kind, weights, f)
    for k in range(len(X)):
        who = [j for j in range(len(X)) if j != k and weights[j] > 0]
        n = len(who)
        trimmed = (n - 1) // 2 if kind == "coordinate_median" else min(f, (n - 1) // 2)
        places = X[who].argsort(dim=0).argsort(dim=0)
        kept = ((places >= trimmed) & (places < n - trimmed)).double().mean(1) / (n - 2 * trimmed)
        torch.testing.assert_close(found.A[k, who].double(), kept, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["krum", "multi_krum"])
def test_krums_weights_make_its_aggregate(kind):
    X = draw(8, 20, 1)
    found = all_but_me(X, kind, byzantine=2)
    assert torch.equal(found.A @ X, found.aggregate)
    assert (found.A > 0).sum(1).tolist() == [1 if kind == "krum" else 5] * 8  # of 7 others


def test_blocks_of_columns_change_nothing(monkeypatch):
    X = draw(7, 101, 2)
    whole = {kind: all_but_me(X, kind) for kind in ROBUST}
    monkeypatch.setattr(robust, "NUMBERS", 7 * 10)
    for kind in ROBUST:
        in_blocks = all_but_me(X, kind)
        assert torch.equal(in_blocks.aggregate, whole[kind].aggregate)
        assert torch.equal(in_blocks.A, whole[kind].A)


@pytest.mark.parametrize("kind", AGGREGATIONS)
@settings(max_examples=20, deadline=None)
@given(st.integers(6, 9), st.integers(2, 20), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_nobodys_number_matters(kind, n, p, seed, random):
    X, order = draw(n, p, seed), random.sample(range(n), n)
    found, permuted = all_but_me(X, kind), all_but_me(X[order], kind)
    torch.testing.assert_close(permuted.aggregate, found.aggregate[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(permuted.A, found.A[order][:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", AGGREGATIONS)
@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(2, 20), st.integers(0, 10**6))
def test_a_shift_of_all_shifts_what_everybody_receives(kind, n, p, seed):
    X, shift = draw(n, p, seed).double(), 10 * draw(1, p, seed + 1).double()
    found = all_but_me(X, kind).aggregate
    torch.testing.assert_close(all_but_me(X + shift, kind).aggregate, found + shift, atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", AGGREGATIONS)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_equal_rows_give_that_row(kind, n):
    X = draw(1, 50, n).repeat(n, 1)
    found = all_but_me(X, kind)
    torch.testing.assert_close(found.aggregate, X)
    assert not found.A.diagonal().any()
    torch.testing.assert_close(found.A.sum(1), torch.ones(n))


@pytest.mark.parametrize("kind", ROBUST)
@settings(max_examples=20, deadline=None)
@given(st.integers(5, 10), st.integers(1, 20), st.sampled_from([1e12, -1e12, 1e30]), st.integers(0, 10**6))
def test_one_row_far_away_moves_nobody_further_than_the_others_are_spread(kind, n, p, far, seed):
    X = draw(n, p, seed)
    moved = X.clone()
    moved[n // 2] = far
    honest = [k for k in range(n) if k != n // 2]
    spread = torch.cdist(X[honest].double(), X[honest].double()).max()
    nearest = torch.cdist(all_but_me(moved, kind).aggregate.double(), X[honest].double()).min(1).values
    assert (nearest <= spread).all()
    others = [k for k in honest if k != honest[0]]
    assert (all_but_me(moved, "mean").aggregate[honest[0]].double() - X[others].double()).norm(dim=1).min() > 1e10


@pytest.mark.parametrize("kind", ["trimmed_mean", "coordinate_median", "krum", "multi_krum", "geometric_median"])
def test_as_many_colluders_as_the_rule_is_made_for_move_nobody(kind):
    X = draw(9, 30, 3)
    honest = X[2:].clone()
    X[0], X[1] = 1e30, 1e30  # two that agree: Krum's 8 others leave 4 neighbours, more than colluders have
    received = all_but_me(X, kind, byzantine=2).aggregate
    assert (received - honest.mean(0)).norm(dim=1).max() < 2 * (honest - honest.mean(0)).norm(dim=1).max()


def test_krum_tells_near_rows_apart_beside_far_ones():
    X = draw(8, 30, 4)
    X[0], X[1] = 1e30, 1e10
    found = all_but_me(X, "krum", byzantine=2)
    for k in range(8):
        best = krum_scores(np.delete(X.double().numpy(), k, axis=0), 2).argmin()
        assert found.A[k].tolist() == np.insert(np.eye(7)[best], k, 0).tolist()


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_two_clients_receive_each_other_and_one_alone_is_refused(kind):
    X = draw(2, 6, 5)
    torch.testing.assert_close(all_but_me(X, kind, byzantine=3).aggregate, X.flip(0))
    for alone, weights in ((X[:1], None), (X, torch.tensor([1.0, 0.0]))):
        with pytest.raises(ValueError, match="at least one other client with a weight above 0"):
            all_but_me(alone, kind, weights)


@pytest.mark.parametrize("byzantine", [-1, 1.5, True, None])
def test_a_number_of_hostile_clients_that_is_none_is_refused(byzantine):
    with pytest.raises(ValueError, match="byzantine must be a whole number"):
        all_but_me(draw(4, 2, 0), "krum", byzantine=byzantine)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.floats(0.1, 3), st.integers(0, 10**6))
def test_no_update_is_longer_than_the_limit_and_short_ones_are_not_touched(n, p, factor, seed):
    before, update = draw(n, p, seed), draw(n, p, seed + 1) * torch.arange(1, n + 1).unsqueeze(1)
    X = before + update
    weights = torch.ones(n)
    weights[1::3] = 0
    norms = np.linalg.norm(X.double().numpy() - before.double().numpy(), axis=1)
    limit = factor * np.sort(norms[weights.numpy() > 0])[(int((weights > 0).sum()) - 1) // 2]
    clipped = norm_clipped(X, before, weights, factor)
    for k in range(n):
        if norms[k] <= limit:
            assert torch.equal(clipped[k], X[k])
        else:
            by_hand = before[k].double() + (X[k].double() - before[k].double()) * limit / norms[k]
            torch.testing.assert_close(clipped[k], by_hand.float())


def test_an_update_of_1e30_is_clipped_to_its_direction():
    before, X = torch.zeros(4, 3), draw(4, 3, 6)
    X[3] = torch.tensor([3e38, 0.0, -3e38])
    clipped = norm_clipped(X, before, torch.ones(4), 1.0)
    limit = X.norm(dim=1).sort().values[1]
    torch.testing.assert_close(clipped[3], limit * torch.tensor([0.5**0.5, 0, -(0.5**0.5)]))
    assert mean(clipped).aggregate.abs().max() < 3


@pytest.mark.parametrize(
    ("before", "weights", "factor", "message"),
    [
        (torch.zeros(3, 1), torch.ones(3), 1.0, "matrices of one shape"),
        (torch.zeros(3, 2), torch.ones(2), 1.0, "matrices of one shape"),
        (torch.zeros(3, 2), torch.ones(3), 0.0, "factor must be a finite number above 0"),
        (torch.zeros(3, 2), torch.ones(3), float("nan"), "factor must be a finite number above 0"),
        (torch.zeros(3, 2), torch.zeros(3), 1.0, "needs a client with a weight"),
    ],
)
def test_what_cannot_be_clipped_is_refused(before, weights, factor, message):
    with pytest.raises(ValueError, match=message):
        norm_clipped(torch.ones(3, 2), before, weights, factor)
