"""Packaged questions are parsed once, and a file that is not what was parsed is never used."""

import json

import pytest

from fedreft_lib.data.items import Question
from fedreft_lib.data.parsed import parsed_once

QUESTIONS = [
    Question("piqa", "", "open a jar\u2028of “jam”\n", ("twist", "é"), 1),
    Question("piqa", "It is hot.", "drink\r\n", ("ice", "tea", "tea"), 0),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDREFT_CACHE", str(tmp_path))
    return tmp_path / "questions" / "piqa_train.json"


def again(origin: str = "wheel and code", found=QUESTIONS) -> tuple[list[Question], int]:
    """The questions, and how often they were parsed."""
    calls = []
    return parsed_once("piqa", "train", origin, lambda: calls.append(1) or list(found)), len(calls)


def test_questions_are_parsed_once_and_come_back_equal(place):
    assert again() == (QUESTIONS, 1)
    assert again(found=[]) == (QUESTIONS, 0)
    again_made = [Question(q.task, q.context, q.question, q.choices, q.gold) for q in QUESTIONS]
    assert [question.uid for question in again()[0]] == [question.uid for question in again_made]


def test_another_package_or_other_code_parses_anew(place):
    again()
    assert again("another", QUESTIONS[:1]) == (QUESTIONS[:1], 1)
    assert again() == (QUESTIONS, 1)


def test_every_changed_byte_and_every_cut_is_noticed_and_mended(place):
    again()
    whole = place.read_bytes()
    for i in range(len(whole)):
        for damaged in (
            whole[:i],
            whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :],
            whole[:i] + b"\xff" + whole[i + 1 :],
        ):
            place.write_bytes(damaged)
            assert again() == (QUESTIONS, 1)
            assert place.read_bytes() == whole


def test_without_a_place_to_write_they_are_parsed_each_time(place):
    place.parent.write_text("a file where the folder would be")
    assert [again(), again()] == [(QUESTIONS, 1)] * 2


def test_the_file_is_plain_json_below_its_hashes(place):
    again()
    assert json.loads(place.read_text(encoding="utf-8").split("\n", 1)[1])[0] == [
        "",
        QUESTIONS[0].question,
        ["twist", "é"],
        1,
        QUESTIONS[0].uid,
    ]
