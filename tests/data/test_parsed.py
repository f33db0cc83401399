"""Packaged questions are parsed once, and a file that is not what was parsed is never used."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from fedreft_lib.data.items import Question, content
from fedreft_lib.data.parsed import parsed_once

QUESTIONS = [
    Question("piqa", "", "open a jar\u2028of “jam”\n", ("twist", "é"), 1),
    Question("piqa", "It is hot.", "drink\r\n", ("ice", "tea", "tea"), 0),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDREFT_CACHE", str(tmp_path))
    return tmp_path / "questions" / "piqa_train.txt"


def again(origin: str = "wheel and code", found=QUESTIONS) -> tuple[list[Question], int]:
    """The questions, and how often they were parsed."""
    calls = []
    return parsed_once("piqa", "train", origin, lambda: calls.append(1) or list(found)), len(calls)


def test_questions_are_parsed_once_and_come_back_equal(place):
    assert again() == (QUESTIONS, 1)
    assert again(found=[]) == (QUESTIONS, 0)
    again_made = [Question(q.task, q.context, q.question, q.choices, q.gold) for q in QUESTIONS]
    assert [question.uid for question in again()[0]] == [question.uid for question in again_made]


def test_a_set_without_questions_is_kept_as_well(place):
    assert [again(found=[]), again()] == [([], 1), ([], 0)]


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


def test_the_file_has_a_line_for_each_question_below_its_hashes(place):
    again()
    _, first, second = place.read_text(encoding="utf-8").split("\n")
    assert first == QUESTIONS[0].uid + json.dumps(["", QUESTIONS[0].question, ["twist", "é"], 1])
    assert second.startswith(QUESTIONS[1].uid)


def test_a_question_that_was_kept_is_like_any_other():
    """Whatever is asked of it first; its fields are parsed only then."""
    plain = QUESTIONS[1]

    def kept() -> Question:
        return Question.of_row(plain.task, plain.row())

    assert "choices" not in vars(kept())
    assert kept() == plain == kept() and hash(kept()) == hash(plain) and repr(kept()) == repr(plain)
    assert asdict(kept()) == asdict(plain) and content(kept()) == content(plain) and kept().row() == plain.row()
    for other in (pickle.loads(pickle.dumps(kept())), copy.deepcopy(kept()), copy.copy(kept()), replace(kept())):
        assert other == plain and other.uid == plain.uid and other.of_file is False
    question = kept()
    assert question.choices is question.choices == plain.choices
    for field in ("gold", "choices", "question", "context", "task", "uid", "of_file"):
        assert getattr(kept(), field) == getattr(plain, field)
    for question in (kept(), plain):
        assert not hasattr(question, "answer")
        with pytest.raises(FrozenInstanceError):
            question.gold = 1
    assert not hasattr(object.__new__(Question), "choices")  # as `copy` and `pickle` make one at first
