"""Calibrated NLL: against a closed form, against scikit-learn's log loss, and where nothing can be fitted."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss

from fedreft_lib.data.grading.calibration import calibrated_nll


def test_with_one_gap_the_probability_of_an_answer_is_the_other_halfs_accuracy():
    right = [1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    p = {0: 4 / 6, 1: 5 / 6}  # of the half that an item is not in
    for gap in (0.01, 2.0, 500.0):
        found = calibrated_nll([[gap, 0.0] for _ in right], [1 - each for each in right])
        expected = [-np.log(p[i % 2] if each else 1 - p[i % 2]) for i, each in enumerate(right)]
        assert found == pytest.approx(expected, abs=1e-4)


def test_each_half_has_the_log_loss_at_the_temperature_that_is_best_for_the_other():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 41)
    scores = rng.normal(size=(41, 4)) + 1.5 * np.eye(4)[labels]
    found = calibrated_nll([-40 + 0.03 * each[: 3 + i % 2] for i, each in enumerate(scores)], labels)
    scores[::2, 3] = -np.inf  # these items have three options

    def loss(half, T):
        return log_loss(labels[half], softmax(scores[half] / T, axis=1), labels=range(4))

    halves = slice(0, None, 2), slice(1, None, 2)
    for half, other in (halves, halves[::-1]):
        T = minimize_scalar(lambda T, other=other: loss(other, T), bounds=(0.1, 10), method="bounded").x
        assert found[half].mean() == pytest.approx(loss(half, T), abs=1e-4)  # whatever the scale and the offset


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[3.0]], 0),  # one option
        ([[3.0, 3.0, 3.0]], np.log(3)),  # alike
        ([[5.0, 1.0, 0.0]], 0),  # all items right: T goes to its lower bound
        ([[0.0, 5.0, 5.0]], np.log(3)),  # all wrong: to its upper bound
    ],
)
def test_where_T_has_no_optimum_the_limit_is_found(scores, expected):
    assert calibrated_nll(6 * scores, 6 * [0]) == pytest.approx(6 * [expected], abs=0.01)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_too_few_items_and_scores_that_are_not_finite_have_none(broken):
    scores = [[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]
    assert calibrated_nll(scores, [0] * 4) is not None
    assert calibrated_nll(scores[:3], [0] * 3) is None and calibrated_nll([], []) is None
    assert calibrated_nll([*scores, [broken, 0.0]], [0] * 5) is None
