"""The metrics of the classification tasks, in percent.

GLUE's own (Wang et al. 2019): Matthews' correlation for CoLA, Pearson's and Spearman's for STS-B, accuracy for all
others, and for QQP and MRPC also the F1 of class 1. Other tasks have accuracy, or for a regression both correlations.

scikit-learn and scipy.stats are imported where they are needed: they take half a second, and accuracy needs neither.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from ...errors import DataError
from ..glue_sources import GLUE

PRIMARY = ("accuracy", "matthews", "pearson", "rouge_l")  # each task has exactly one of them
CALIBRATED_NLL = "calibrated_nll"  # in nats, beside the primary one where options have scores; see calibration


def scores(task: str, predictions: Sequence[float], labels: Sequence[float], classes: int) -> dict[str, float]:
    """All metrics of the task, in percent, the primary one first.

    predictions, labels: (N,), classes from 0, or numbers where `classes` is 0 (a regression).
    An undefined value is 0, without a warning: a correlation where all predictions or all labels are equal (or not
    finite), and F1 where neither has class 1. Raises DataError for no items.
    """
    if len(labels) == 0:
        raise DataError(f"There is no item of {task} to score.")
    otherwise = ("accuracy",) if classes else ("pearson", "spearman")
    names = GLUE[task].metrics if task in GLUE else otherwise
    truth, said = np.asarray(labels), np.asarray(predictions)
    return {name: 100 * float(_METRICS[name](truth, said)) for name in names}


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return (labels == predictions).mean()


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(labels, predictions, zero_division=0.0)


def _matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    if len(np.unique(labels)) == 1 or len(np.unique(predictions)) == 1:
        return 0.0  # as in scikit-learn, which warns where both have only one class
    return matthews_corrcoef(labels, predictions)


def _correlation(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """By the function `name` of scipy.stats."""

    def correlation(labels: np.ndarray, predictions: np.ndarray) -> float:
        from scipy import stats

        if len(labels) < 2 or not np.isfinite(predictions).all():
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            value = getattr(stats, name)(labels, predictions).statistic
        return 0.0 if np.isnan(value) else value

    return correlation


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
}
