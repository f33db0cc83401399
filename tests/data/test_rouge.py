"""ROUGE-L agrees with its definition."""

import random
import re
import string
from functools import cache
from itertools import combinations

import pytest
from torchmetrics.functional.text.rouge import rouge_score

from fedreft_lib.data.grading.rouge import rouge_l
from fedreft_lib.data.grading.words import words
from fedreft_lib.data.instruction import PACKAGED, load


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


@pytest.mark.parametrize(
    "prediction, reference, expected",
    [
        ("Привет, мир", "привет мир!", 100),
        ("старый мир", "новый мир", 50),
        ("หมา", "หมู", 40),  # Thai: characters with their marks; P = 1/3, R = 1/2
        ("我爱北京", "我爱上海", 50),  # Han: characters
        ("東京タワー", "東京ﾀﾜｰ", 100),  # half-width letters are the same letters
        ("２０２４年", "2024年", 100),
        ("हिन्दी में", "हिन्दी में", 100),
        ("हिन्दी", "हन्दी", 0),  # a vowel sign is part of the word
        ("မြန်မာ", "မြန်မာ", 100),
        ("한국어 말", "한국어 글", 50),
        ("שלום עולם", "שלום", 200 / 3),
        ("مرحبا", "مرحبا", 100),
        ("ΟΔΟΣ", "οδος", 100),
        ("Straße", "STRASSE", 100),
        ("cafe\u0301", "café", 100),  # two ways to write it
        ("café", "cafe", 0),  # an accent counts
        ("café", "caf x", 0),  # the ASCII rule read é as the end of a word
        ("№ 1", "1", 100),  # symbols are no words
        ("x² ½ 1\ufe0f\u20e3 ❤\ufe0f word™", "x 1 word", 100),
        ("👍", "👍", 0),  # no words
    ],
)
def test_a_word_is_one_in_any_script(prediction, reference, expected):
    assert rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-4)
    assert rouge_l(reference, prediction) == pytest.approx(expected, abs=1e-4)


def _packaged_texts() -> list[str]:
    exchanges = [e for task in PACKAGED for split in ("train", "test") for e in load(task, split, source="packaged")]
    return [text for exchange in exchanges for text in (exchange.question, exchange.response)]


def test_english_values_are_exactly_those_of_torchmetrics_own_words():
    texts = _packaged_texts()
    letters = "".join(sorted(set("".join(texts)) | set(string.printable)))
    rng = random.Random(1)
    odd = ["".join(rng.choices(letters + "“”’–—…™½²×°€→✓", k=40)) for _ in range(60)]
    assert len(texts) == 480
    for one in texts + odd:  # the same words are the same value, whatever the other text is
        assert words(one) == re.findall("[a-z0-9]+", one.lower())
    for one, other in [*zip(texts, texts[1:], strict=False), *combinations(odd[:12], 2)]:
        theirs = rouge_score(one, other, rouge_keys="rougeL")["rougeL_fmeasure"]
        assert rouge_l(one, other) == 100 * float(theirs)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    rng = random.Random(0)
    texts = [" ".join(rng.choices("A, b c. d-e f", k=rng.randrange(12))) for _ in range(14)]
    for prediction, reference in combinations(texts, 2):
        assert rouge_l(prediction, reference) == pytest.approx(_reference(prediction, reference), abs=1e-4)
