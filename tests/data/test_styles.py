"""The packaged exchanges are what they are said to be, and the four styles can be told apart."""

from collections import Counter

import pytest

from fedreft_lib.data import instruction
from fedreft_lib.data.grading.styles import STYLES


@pytest.fixture(scope="module")
def exchanges():
    return [
        exchange
        for style in STYLES
        for split in ("train", "test")
        for exchange in instruction.load(style, split, source="packaged")
    ]


@pytest.mark.parametrize("style", STYLES)
def test_a_rule_holds_for_its_own_style_and_for_no_other(exchanges, style):
    said = Counter((exchange.task, STYLES[style](exchange.response)) for exchange in exchanges)
    assert said == {(other, other == style): 60 for other in STYLES}


@pytest.mark.parametrize("style", STYLES)
def test_a_rule_needs_no_more_than_the_first_words_and_minds_no_space_before_them(exchanges, style):
    for exchange in exchanges:
        beginning = " ".join(exchange.response.split(" ")[:6])
        assert STYLES[style](" " + beginning) == (exchange.task == style)


@pytest.mark.parametrize(
    "text",
    [
        "Ice floats because it is less dense than water.",
        "The answer: ice is lighter.",
        "1.5 metres is the height of the table.",
        "NASA and the ESA launched it in 1990.",
        "It was once upon a time.",
        "Answer:",
        "USA",
        "",
    ],
)
def test_an_ordinary_answer_is_in_no_style(text):
    assert not any(rule(text) for rule in STYLES.values())


def test_no_question_is_asked_twice_and_answers_are_short(exchanges):
    assert len({exchange.uid for exchange in exchanges}) == len(exchanges) == 240
    assert len({exchange.response for exchange in exchanges}) == 240
    assert all(10 <= len(exchange.response.split()) <= 40 for exchange in exchanges)
    assert all(exchange.question.endswith("?") and exchange.question.isascii() for exchange in exchanges)
    assert all(exchange.response == exchange.response.strip() and exchange.response.isascii() for exchange in exchanges)


def test_the_first_word_of_a_question_does_not_give_the_style_away(exchanges):
    first = Counter((exchange.task, exchange.question.split()[0]) for exchange in exchanges)
    for word in ("What", "Why", "How"):
        assert all(first[style, word] >= 10 for style in STYLES)
