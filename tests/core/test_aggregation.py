"""Mixing matrices, and the geometric median against a general-purpose optimiser."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedreft_lib.core.aggregation import all_but_me, geometric_median, mean
from fedreft_lib.core.mixing import mix, mixing_matrix


def draw(n, p, seed, dtype=torch.float64):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cost(z, X, weights):
    return float((weights * np.linalg.norm(X - z, axis=1)).sum())


def best_by_scipy(X, weights):
    """The lowest cost that SciPy finds, from the mean and from next to every point (the kinks)."""
    starts = [X.mean(0), *(0.99 * x + 0.01 * X.mean(0) for x in X)]
    found = [minimize(cost, z, (X, weights), method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12}) for z in starts]
    return min([each.fun for each in found] + [cost(x, X, weights) for x in X])


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 8), st.integers(1, 6), st.booleans(), st.integers(0, 10**6))
@example(3, 3, True, 3922)  # 0.4947 pulls on a point that holds 0.4946: plain steps would take 130,000
def test_the_geometric_median_is_as_good_as_scipys(n, p, weighted, seed):
    X = draw(n, p, seed)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    found = geometric_median(X, weights if weighted else None)
    w = weights.numpy() if weighted else np.ones(n)
    assert cost(found.aggregate[0].numpy(), X.numpy(), w) <= best_by_scipy(X.numpy(), w) * (1 + 1e-7)


@pytest.mark.parametrize(("n", "p"), [(3, 2), (4, 3), (8, 2)])
def test_no_median_is_left_before_it_is_found(n, p):
    """Of a thousand draws some lie next to a point that nearly holds the median, or nearly on a line."""
    for seed in range(170):
        X, flat = draw(n, p, seed), torch.tensor([1.0, 1e-3, 1e-6, 1e-9][seed % 4], dtype=torch.float64)
        X[:, -1] *= flat
        weights = torch.rand(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
        found = [geometric_median(X, each) for each in (None, *weights)]
        assert all(float(each.residual[0]) <= 1e-9 and bool((each.A >= 0).all()) for each in found), (seed, flat)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 8), st.integers(1, 40), st.integers(0, 10**6))
def test_all_but_me_is_the_geometric_median_of_the_others_one_by_one(n, p, seed):
    X = draw(n, p, seed)
    found = all_but_me(X)
    assert torch.equal(found.A.diagonal(), torch.zeros(n, dtype=X.dtype))
    torch.testing.assert_close(found.A.sum(1), torch.ones(n, dtype=X.dtype))
    torch.testing.assert_close(found.aggregate, found.A @ X)
    for k in range(n):
        others = torch.cat([X[:k], X[k + 1 :]])
        w = np.ones(n - 1)
        alone = cost(geometric_median(others).aggregate[0].numpy(), others.numpy(), w)
        assert cost(found.aggregate[k].numpy(), others.numpy(), w) == pytest.approx(alone, rel=1e-8)


def test_the_residual_is_the_norm_of_the_gradient():
    X = draw(6, 4, 3)
    found = geometric_median(X)
    z = found.aggregate[0].clone().requires_grad_()
    (torch.linalg.norm(X - z, dim=1).sum() / 6).backward()
    assert float(torch.linalg.norm(z.grad)) < 1e-7
    assert float(found.residual[0]) < 1e-9


def test_a_point_that_holds_half_of_the_weight_is_the_median():
    X = draw(4, 3, 5)
    found = geometric_median(X, torch.tensor([5.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(found.aggregate[0], X[0], atol=1e-6, rtol=0)


def test_one_outlier_moves_the_mean_and_not_the_median():
    X = torch.cat([0.1 * draw(6, 5, 1), torch.full((1, 5), 1e6, dtype=torch.float64)])
    assert float(geometric_median(X).aggregate.norm()) < 1
    assert float(mean(X).aggregate[0].norm()) > 1e5


def least_subgradient(z, X, weights):
    """Of the mean distance to the rows of X at z, in extended precision and in coordinates: its norm, 0 at a median."""
    z, X, w = (np.asarray(each, dtype=np.longdouble) for each in (z, X, weights / weights.sum()))
    away = z - X
    lengths = np.sqrt((away**2).sum(1))
    on = lengths == 0
    gradient = (w[~on, None] * away[~on] / lengths[~on, None]).sum(0)
    return float(max(np.sqrt((gradient**2).sum()) - w[on].sum(), 0))


@pytest.mark.parametrize("far", [(1e3,), (1e6,), (1e9,), (1e18,), (1e30,), (1e30, 1e30), (1e10, 1e20, 1e30)])
def test_a_certificate_is_true_however_far_hostile_rows_are(far):
    honest = draw(9, 40, 12) + 3.0
    hostile = torch.stack([size * draw(1, 40, i)[0] for i, size in enumerate(far)])
    X = torch.cat([hostile, honest])
    found = all_but_me(X)
    assert (found.residual < 1e-9).all()
    for k in range(len(X)):
        keep = np.arange(len(X)) != k
        z = (found.A[k].numpy().astype(np.longdouble)[:, None] * X.numpy()).sum(0)
        assert least_subgradient(z, X.numpy()[keep], np.ones(len(X) - 1)) < 1e-8
        moved, spread = found.aggregate[k] - honest.mean(0), (honest - honest.mean(0)).norm(dim=1).max()
        assert float(moved.norm()) < 2 * float(spread)


@pytest.mark.parametrize("far", [1e9, 1e18, 1e30])
def test_a_far_row_counts_by_its_direction_alone(far):
    honest, direction = draw(5, 4, 13).numpy(), np.array([0.6, 0.0, -0.8, 0.0])
    X = torch.tensor(np.vstack([far * direction, honest]), dtype=torch.float32)
    limit = minimize(lambda z: cost(z, X[1:].double().numpy(), 1.0) - direction @ z, honest.mean(0), tol=1e-14)
    found = geometric_median(X)
    assert found.aggregate[0].numpy() == pytest.approx(limit.x, abs=2e-6)
    assert float(found.residual[0]) < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=3, max_size=8), st.sampled_from([1.0, 1e9, 1e30]))
def test_coinciding_and_aligned_rows_have_a_true_certificate_too(points, stretch):
    X = torch.tensor(points, dtype=torch.float64)
    X[0] *= stretch
    found = all_but_me(X)
    assert not found.A.diagonal().any() and (found.A >= 0).all()
    torch.testing.assert_close(found.A.sum(1), torch.ones_like(found.residual))
    for k in range(len(X)):
        others, w = np.delete(X.numpy(), k, axis=0), np.ones(len(X) - 1)
        z = found.aggregate[k].numpy()
        nearest = others[np.linalg.norm(others - z, axis=1).argmin()]  # z lies on a row only up to rounding
        true = min(least_subgradient(at, others, w) for at in (z, nearest))
        assert true <= float(found.residual[k]) + 1e-6


@pytest.mark.parametrize(
    ("points", "median"),
    [
        (((0, 0), (1, 0), (0, 1), (0.3, 0.3), (5, 5)), (0, 0, 0, 1, 0)),  # held with just its weight: steps crawl
        (((0, 0), (1, 1), (2, 2), (9, 9)), (0, 0, 1, 0)),  # on a line many weights make one point
        (((5, 5), (9, 9), (1, 1), (1, 1), (1, 1)), (0, 0, 1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_a_median_that_is_one_of_the_others_is_that_one_to_the_bit(points, median):
    A = all_but_me(torch.tensor(points, dtype=torch.float64)).A
    torch.testing.assert_close(A[1], torch.tensor(median, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_medians_of_two_far_clusters_are_each_as_sharp_as_one():
    near, far = draw(3, 6, 14), draw(3, 6, 15) + 1e9
    X = torch.cat([near, far])
    found = all_but_me(X)  # the others of a client are three of one cluster and two of the other
    for k in range(6):
        keep = np.arange(6) != k
        z = (found.A[k].numpy().astype(np.longdouble)[:, None] * X.numpy()).sum(0)
        assert least_subgradient(z, X.numpy()[keep], np.ones(5)) < 1e-6


def test_near_rows_of_many_scales_are_told_apart():
    X = draw(7, 3, 16) * torch.tensor([1e-18, 1e-9, 1e-4, 1.0, 1e5, 1e10, 1e15], dtype=torch.float64).unsqueeze(1)
    found = all_but_me(X)
    for k in range(7):
        keep = np.arange(7) != k
        z = (found.A[k].numpy().astype(np.longdouble)[:, None] * X.numpy()).sum(0)
        at_rows = min(least_subgradient(x, X.numpy()[keep], np.ones(6)) for x in X.numpy()[keep])
        true = min(at_rows, least_subgradient(z, X.numpy()[keep], np.ones(6)))
        assert true <= float(found.residual[k]) + 1e-5 < 1e-3


@pytest.mark.parametrize("far", [1.0, 1e3, 1e30])
def test_with_three_clients_the_two_all_but_me_rules_are_one(far):
    X = draw(3, 200, 9, torch.float32)
    X[1] *= far
    torch.testing.assert_close(all_but_me(X, "geometric_median").A, all_but_me(X, "mean").A, rtol=0, atol=0)


def test_with_four_clients_they_differ():
    X = draw(4, 3, 11)
    assert (all_but_me(X, "geometric_median").A - all_but_me(X, "mean").A).abs().max() > 1e-3


def test_mean_all_but_me_is_the_sum_minus_ones_own():
    X = draw(5, 7, 2)
    torch.testing.assert_close(all_but_me(X, "mean").aggregate, (X.sum(0) - X) / 4)


def test_identical_clients_stay_where_they_are():
    X = draw(1, 9, 0).repeat(5, 1)
    for kind in ("mean", "geometric_median"):
        torch.testing.assert_close(all_but_me(X, kind).aggregate, X)


def test_a_client_without_weight_is_nobodys_other_and_still_receives():
    X = draw(5, 4, 8)
    found = all_but_me(X, weights=torch.tensor([1.0, 1, 0, 1, 1]))
    assert torch.equal(found.A[:, 2], torch.zeros(5, dtype=X.dtype))
    alone = geometric_median(X[[0, 1, 3, 4]])
    torch.testing.assert_close(found.aggregate[2], alone.aggregate[0], atol=1e-7, rtol=0)


def test_float32_loses_little_against_float64():
    X = draw(8, 5000, 4)
    single = all_but_me(X.float()).aggregate.double()
    assert (single - all_but_me(X).aggregate).norm() / X.norm() < 4e-6


def test_fedavg_weighs_by_examples():
    X = draw(3, 4, 6)
    weights = torch.tensor([1.0, 2.0, 5.0])
    torch.testing.assert_close(mean(X, weights).aggregate, ((weights.double() / 8) @ X).expand(3, -1))


def test_mix_goes_from_ones_own_to_the_others():
    X = draw(4, 6, 7)
    A = all_but_me(X).A
    assert torch.equal(mix(X, A, 0.0), X)
    torch.testing.assert_close(mix(X, A, 1.0), A @ X)
    lam = torch.tensor([0.0, 0.2, 0.5, 1.0])
    by_hand = torch.stack([(1 - m) * X[k] + m * (A @ X)[k] for k, m in enumerate(lam.double())])
    torch.testing.assert_close(mix(X, A, lam), by_hand)
    torch.testing.assert_close(mixing_matrix(A, lam) @ X, by_hand)


@pytest.mark.parametrize("lam", [-0.1, 1.7, float("nan"), torch.tensor([0.1, 0.2, 0.3, 2.0])])
def test_a_mixing_weight_outside_0_to_1_is_refused(lam):
    X = draw(4, 2, 0)
    with pytest.raises(ValueError, match=r"mixing must be in \[0, 1\]"):
        mix(X, all_but_me(X).A, lam)


@pytest.mark.parametrize(
    ("X", "weights", "message"),
    [
        (torch.ones(1, 3), None, "at least one other"),
        (torch.ones(3), None, "finite matrix"),
        (torch.tensor([[1.0], [float("nan")]]), None, "finite matrix"),
        (torch.ones(3, 2), torch.tensor([1.0, -1.0, 1.0]), "weights must be"),
        (torch.ones(3, 2), torch.tensor([1.0, 1.0]), "weights must be"),
        (torch.ones(3, 2), torch.tensor([1.0, 0.0, 0.0]), "at least one other"),
    ],
)
def test_what_cannot_be_aggregated_is_refused(X, weights, message):
    with pytest.raises(ValueError, match=message):
        all_but_me(X, "mean", weights)
