"""Calibrated negative log-likelihood: how sure a model is of the correct option, comparable between models.

The raw likelihood of a correct answer mostly measures the answer's form and the scale of the logits, and both change
with any training: it can get worse while the accuracy gets better. So the options of an item are compared with one
another alone, by softmax(s / T), and the scale T is fitted on other items (temperature scaling: Guo et al. 2017,
arxiv.org/abs/1706.04599).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

LEAST = 4  # items, two in each half
# Of log T, where T is in units of the mean distance between an option and the correct one. At the lower bound a half
# whose items are all right is as good as certain (probabilities of exp(-20)), at the upper one all options are alike.
BOUNDS = (-3.0, 7.0)


def calibrated_nll(scores: Sequence[ArrayLike], correct: Sequence[int]) -> np.ndarray | None:
    """For each item -log softmax(s / T) of its correct option, in nats: (items,).

    scores: s (options,) of each item, for example log-likelihoods or logits. correct: the index of its correct option.
    T of the items 0, 2, 4, ... is the one with the least mean on the items 1, 3, 5, ..., and the other way round. All
    scores times one positive factor, or one item's scores plus one number, give the same.
    None for fewer than 4 items, and where a score is not finite.
    """
    if len(scores) < LEAST or not all(np.isfinite(each).all() for each in scores):
        return None
    gaps = np.full((len(scores), max(map(len, scores))), -np.inf)  # missing options have probability 0
    for row, each, k in zip(gaps, scores, correct, strict=True):
        row[: len(each)] = np.subtract(each, each[k], dtype=float)
    found = np.empty(len(gaps))
    for half, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        found[half] = _nll(gaps[half], _fitted(gaps[other]))
    return found


def _nll(gaps: np.ndarray, T: float) -> np.ndarray:
    """Each item's NLL (items,). gaps (items, options): the scores minus that of the correct option."""
    return np.logaddexp.reduce(gaps / T, axis=1)


def _fitted(gaps: np.ndarray) -> float:
    """T with the least mean NLL. That is convex in 1/T, so there is no other minimum for the search to end in."""
    unit = np.abs(gaps[np.isfinite(gaps)]).mean()
    if unit == 0:  # all options are alike, whatever T is
        return 1.0
    found = minimize_scalar(lambda x: _nll(gaps, unit * np.exp(x)).mean(), bounds=BOUNDS, method="bounded")
    return unit * np.exp(found.x)
