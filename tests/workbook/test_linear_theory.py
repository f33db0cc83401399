"""FedAvg of linear models finds the clients' common subspace with two local steps, and not with one."""

from itertools import islice

import numpy as np
import pytest

from fedreft_lib.workbook.linear_theory import distance, papers_start, rounds

B_STAR = np.eye(4)[:, :2]
Q = np.array([[1, 0], [0, 0.5], [0, 0.75**0.5], [0, 0]])  # the second column is 60 degrees away
DIVERSE, ALIKE = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])


def distances(Q, B_star, w_star, alpha, steps, last):
    path = rounds(*papers_start(Q, alpha), B_star, w_star, alpha=alpha, steps=steps)
    return [distance(B, B_star) for B, _ in islice(path, last + 1)]


@pytest.mark.parametrize(
    ("steps", "w_star", "expected"),
    [
        (1, DIVERSE, {0: 0.8660254, 1: 0.8660254, 50: 0.8660254, 400: 0.8660254}),
        (2, DIVERSE, {1: 0.852182, 10: 0.694632, 50: 0.088744, 100: 0.00443124, 200: 1.0958e-5, 400: 6.7e-11}),
        (4, DIVERSE, {50: 0.00055782}),
        (2, ALIKE, {1: 0.8660254, 400: 0.8660254}),  # clients that want the same show one direction
    ],
)  # fmt: skip
def test_the_distances_of_a_small_case(steps, w_star, expected):
    found = distances(Q, B_STAR, w_star, 0.25, steps, max(expected))
    assert {t: found[t] for t in expected} == pytest.approx(expected, rel=1e-4, abs=1e-15)


def drawn(seed):
    generator = np.random.default_rng(seed)
    B_star, w_star = np.linalg.qr(generator.normal(size=(20, 2)))[0], generator.normal(size=(20, 2))
    return np.linalg.qr(generator.normal(size=(20, 2)))[0], B_star, w_star


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_step_stays_above_its_floor_where_several_go_to_zero(seed):
    Q, B_star, w_star = drawn(seed)
    V = np.linalg.qr(np.column_stack([Q, B_star @ w_star.mean(0)]))[0]
    floor = np.linalg.norm(B_star - V @ V.T @ B_star, 2)  # no column of B ever leaves col(V)
    assert floor > 0.85
    assert min(distances(Q, B_star, w_star, 0.4, 1, 399)) > floor - 1e-12
    assert distances(Q, B_star, w_star, 0.4, 2, 399)[-1] < 1e-12
    assert distances(Q, B_star, w_star, 0.4, 5, 50)[-1] < 1.1e-5


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_round_obeys_the_identity(steps):
    """(I - P*) B' = (I - P*) B mean_i prod_s (I - alpha w_is w_is^T), and B' goes down each client's own loss."""
    Q, B_star, w_star = drawn(3)
    generator = np.random.default_rng(4)
    B, w, alpha = generator.normal(size=(20, 2)), generator.normal(size=2), 0.01
    _, (after, after_w) = islice(rounds(B, w, B_star, w_star, alpha=alpha, steps=steps), 2)
    outside = np.eye(20) - B_star @ B_star.T
    products, ends = [], []
    for own in w_star:
        x, product = np.concatenate([B, w[None]]), np.eye(2)

        def loss(x, own=own):
            return 0.5 * np.sum((x[:-1] @ x[-1] - B_star @ own) ** 2)

        for _ in range(steps):
            product = product @ (np.eye(2) - alpha * np.outer(x[-1], x[-1]))
            gradient = np.zeros_like(x)
            for place in np.ndindex(x.shape):  # central differences
                step = np.zeros_like(x)
                step[place] = 1e-5
                gradient[place] = (loss(x + step) - loss(x - step)) / 2e-5
            x = x - alpha * gradient
        products.append(product)
        ends.append(x)
    np.testing.assert_allclose(outside @ after, outside @ B @ np.mean(products, axis=0), atol=1e-8)
    np.testing.assert_allclose(np.concatenate([after, after_w[None]]), np.mean(ends, axis=0), atol=1e-8)


def test_the_distance_is_the_sine_of_the_largest_angle_whatever_the_bases():
    mixed = np.array([[2.0, 1.0], [0.0, 3.0]])
    assert distance(Q @ mixed, B_STAR @ mixed.T) == pytest.approx(0.75**0.5)
    assert distance(B_STAR @ mixed, B_STAR) == pytest.approx(0, abs=1e-15)
