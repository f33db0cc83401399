"""ROUGE-L agrees with its definition."""

import random
import re
from functools import cache
from itertools import combinations

import pytest

from fedreft_lib.rouge import rouge_l


def _reference(prediction: str, reference: str) -> float:
    """By the definition, with the longest common subsequence by plain recursion."""
    said, meant = (re.findall("[a-z0-9]+", text.lower()) for text in (prediction, reference))

    @cache
    def longest(i: int, j: int) -> int:
        if i == len(said) or j == len(meant):
            return 0
        if said[i] == meant[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    common = longest(0, 0)
    return 100 * 2 * common / (len(said) + len(meant)) if common else 0.0  # 2 P R / (P + R)


@pytest.mark.parametrize(
    "prediction, reference, expected",
    [
        ("the cat sat on the mat", "the cat sat on the mat", 100),
        ("The cat, sat!", "the CAT sat", 100),
        ("police kill the gunman", "police killed the gunman", 75),  # 3 of 4 and 3 of 4, as in Lin 2004
        ("the gunman kill police", "police killed the gunman", 50),  # order counts: "the gunman"
        ("a b c d e f", "a c", 50),  # P = 2/6, R = 1
        ("runs", "run", 0),  # no stemming
        ("a b", "c d", 0),
        ("", "a b", 0),
        ("...", "a b", 0),
        ("a b", "", 0),
    ],
)
def test_rouge_l_by_hand(prediction, reference, expected):
    assert rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-4)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    rng = random.Random(0)
    texts = [" ".join(rng.choices("A, b c. d-e f", k=rng.randrange(12))) for _ in range(14)]
    for prediction, reference in combinations(texts, 2):
        assert rouge_l(prediction, reference) == pytest.approx(_reference(prediction, reference), abs=1e-4)
