"""The metrics of the classification tasks, in percent.

GLUE's own (Wang et al. 2019): Matthews' correlation for CoLA, Pearson's and Spearman's for STS-B, accuracy for all
others, and for QQP and MRPC also the F1 of class 1. Other tasks have accuracy, or for a regression both correlations.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import DegenerateDataWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

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


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    return f1_score(labels, predictions, zero_division=0.0)


def _matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    if len(np.unique(labels)) == 1 or len(np.unique(predictions)) == 1:
        return 0.0  # as in scikit-learn, which warns where both have only one class
    return matthews_corrcoef(labels, predictions)


def _correlation(measure: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlation(labels: np.ndarray, predictions: np.ndarray) -> float:
        if len(labels) < 2 or not np.isfinite(predictions).all():
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)
            value = measure(labels, predictions).statistic
        return 0.0 if np.isnan(value) else value

    return correlation


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}
