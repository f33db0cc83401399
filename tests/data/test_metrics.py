"""The metrics are GLUE's, in percent, and what is undefined is 0 without a warning."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedreft_lib.data.glue import TASKS
from fedreft_lib.data.glue_sources import GLUE, MISMATCHED
from fedreft_lib.data.grading.metrics import PRIMARY, scores
from fedreft_lib.errors import DataError

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
numbers = st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 25)), min_size=3, max_size=40)


def _table(rows: list[tuple[int, int]]) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives of (prediction, label)."""
    return tuple(rows.count(cell) for cell in ((1, 1), (1, 0), (0, 1), (0, 0)))


@given(pairs)
def test_accuracy_and_f1_are_those_of_the_confusion_table(rows):
    tp, fp, fn, tn = _table(rows)
    found = scores("mrpc", *zip(*rows, strict=True), classes=2)
    assert found["accuracy"] == pytest.approx(100 * (tp + tn) / len(rows))
    assert found["f1"] == pytest.approx(200 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0)


@given(pairs)
def test_matthews_is_that_of_the_confusion_table(rows):
    tp, fp, fn, tn = _table(rows)
    scale = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = 100 * (tp * tn - fp * fn) / sqrt(scale) if scale else 0
    assert scores("cola", *zip(*rows, strict=True), classes=2) == {"matthews": pytest.approx(expected, abs=1e-9)}


@given(numbers)
def test_pearson_is_the_covariance_over_the_spreads_and_spearman_is_pearson_of_ranks(rows):
    said, truth = np.array(rows, dtype=float).T
    found = scores("stsb", said / 7, truth / 5, classes=0)
    for name, x, y in (("pearson", said, truth), ("spearman", stats.rankdata(said), stats.rankdata(truth))):
        spread = x.std() * y.std()
        expected = 100 * ((x - x.mean()) * (y - y.mean())).mean() / spread if spread else 0
        assert found[name] == pytest.approx(expected, abs=1e-6)


def test_a_score_by_hand():
    found = scores("qqp", [1, 1, 0, 0, 1], [1, 0, 0, 1, 1], classes=2)
    assert found == {"accuracy": pytest.approx(60), "f1": pytest.approx(100 * 2 / 3)}
    assert scores("mnli", [0, 1, 2, 2], [0, 1, 2, 0], classes=3) == {"accuracy": 75}


@pytest.mark.parametrize("task", (*TASKS, MISMATCHED, "moods", "grades"))
def test_every_task_has_exactly_one_primary_metric_and_it_comes_first(task):
    classes = 0 if task == "grades" else len(GLUE[task].labels) if task in GLUE else 3
    found = list(scores(task, [0, 1, 1], [0, 1, 0], classes))
    assert [name for name in found if name in PRIMARY] == found[:1]
    if task in GLUE:
        assert tuple(found) == GLUE[task].metrics


@pytest.mark.parametrize(
    "predictions, labels",
    [([1, 1, 1], [0, 1, 0]), ([0, 1, 0], [1, 1, 1]), ([1, 1, 1], [1, 1, 1]), ([0, 0, 0], [1, 1, 1]), ([1], [1])],
)
def test_one_class_or_constant_predictions_have_no_correlation(predictions, labels):
    assert scores("cola", predictions, labels, 2) == {"matthews": 0}
    assert scores("stsb", np.float32(predictions), labels, 0) == {"pearson": 0, "spearman": 0}


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_predictions_of_a_model_that_diverged_score_nothing(broken):
    assert scores("stsb", [broken, 1.0, 2.0], [1.0, 2.0, 3.0], 0) == {"pearson": 0, "spearman": 0}


def test_predictions_that_are_all_but_constant_bring_no_warning():
    assert abs(scores("stsb", [1.0, 1.0, 1.0 + 1e-15], [1.0, 2.0, 3.0], 0)["pearson"]) <= 100.001


def test_nothing_to_score_is_refused():
    with pytest.raises(DataError, match="no item of rte"):
        scores("rte", [], [], 2)
