"""Answers are read out of a text as the evaluations of ReFT and LLM-Adapters read them.

pyreft's package does not ship its `examples/loreft/compute_metrics.py`, so what that gives is written out by hand.
"""

import pytest

from fedreft_lib.data.grading.numbers import extract_letter, extract_number, graded, same_number
from fedreft_lib.data.items import Exchange


@pytest.mark.parametrize(
    "text, number",
    [
        ("72", 72),
        ("The answer is 72.", 72),  # the full stop is taken along, and float reads "72."
        ("#### 72", 72),
        ("The final answer is:  72</s>", 72),
        ("1,080", 1080),
        ("$1,234,567.50 in total", 1234567.5),
        ("it costs $18 a day", 18),
        ("that is 12.5%", 12.5),
        ("9 km/h", 9),
        ("0.6666666666666666", 2 / 3),
        ("007", 7),
        ("-15", -15),
        ("x = -15.0", -15),
        ("-$5", 5),  # the minus does not touch the digit
        ("9 - 5", 5),
        ("9-5", -5),  # here it does
        ("2 \u2212 7 = \u22125", 5),  # a typographic minus is no minus
        ("5 + 3 = 8, so 8 apples, 2 each", 2),  # the last one, whatever it is
        ("#### 8 I hope that helps 100%", 100),  # also after ####
        ("3, 4", 4),
        ("3,4", 34),
        ("1.2.3", 3),
        (".5", 5),
        ("3/4", 4),
        ("1 1/2", 2),
        ("2e3", 3),
        ("1.5e-3", -3),
        ("12\n\n34", 34),
        ("x2", 2),
        ("eight", None),
        ("", None),
        (",.-", None),
    ],
)
def test_the_number_of_a_text_is_the_last_one_without_commas(text, number):
    assert extract_number(text) == number
    assert number is None or type(extract_number(text)) is float


@pytest.mark.parametrize(
    "text, letter",
    [
        ("The answer is (D).", "D"),
        ("B", "B"),
        ("(a) is wrong, (C) is right", "C"),
        ("Ben has 3 apples. The answer is (D).", "B"),  # the first capital, whatever it begins
        ("A: the sum is 5. The answer is (E)", "A"),
        ("not (F)", None),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_the_letter_of_a_text_is_the_first_capital_from_a_to_e(text, letter):
    assert extract_letter(text) == letter


@pytest.mark.parametrize(
    "a, b, same",
    [
        (1.0, 1.0, True),
        (0.3333, 1 / 3, True),
        (0.0, 0.001, True),
        (0.0, 0.0011, False),
        (-4.0, 4.0, False),
        (None, 4.0, False),
        (4.0, None, False),
        (None, None, False),
        (float("inf"), float("inf"), False),  # what ReFT says of a text without a number is never right
    ],
)
def test_two_numbers_are_the_same_within_a_thousandth(a, b, same):
    assert same_number(a, b) is same


@pytest.mark.parametrize(
    "answer, kind, generation, right",
    [
        ("18", "number", "She makes 9 * 2 = $18 a day.\n#### 18", True),
        ("18", "number", "The answer is 18.0 dollars", True),
        ("18", "number", "The answer is eighteen.", False),
        ("18", "number", "", False),
        ("6.0", "number", "The answer is 6.", True),
        ("1,080", "number", "1080", True),  # as GSM8K writes it
        ("1080", "number", "That makes $1,080.", True),
        ("-15", "number", "The answer is 15.", False),
        ("0.75", "number", "The answer is 3/4.", False),
        ("1e-2", "number", "0.01", True),
        ("D", "letter", "The answer is (D).", True),
        ("D", "letter", "the answer is (d)", False),
        ("D", "letter", "By elimination: (D).", False),
        ("D", "letter", "", False),
        # LLM-Adapters would stop reading at the second heading, and count this as right
        ("18", "number", "18\n\n### Response:\n20", False),
    ],
)
def test_a_generation_is_graded_as_reft_grades_it(answer, kind, generation, right):
    assert graded(Exchange("t", "How many?", "r", answer, kind), generation) is right


def test_free_text_is_not_right_or_wrong():
    with pytest.raises(ValueError, match="kind 'text'"):
        graded(Exchange("t", "Say hello.", "hello"), "hello")
