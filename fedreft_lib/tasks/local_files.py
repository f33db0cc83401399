"""Questions from your own folder.

For task NAME and split SPLIT the folder holds one of `NAME_SPLIT.json`, `NAME_SPLIT.jsonl`, `NAME/SPLIT.json` or
`NAME/SPLIT.jsonl`; for the eight tasks NAME may also be LLM-Adapters' ("ARC-Easy", "social_i_qa"). The file is a JSON
list or one JSON object a line, in any of three forms, told apart by their columns:

    LLM-Adapters   instruction, output, answer (input, where it is there, must be empty)
    our own        question, choices (a list of texts), gold (index from 0), context (may be left out)
    the dataset's  see `fields`

A task of your own, with any name, needs the second form.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedreft_lib.errors import DataError
from fedreft_lib.tasks.commonsense import TASKS, llm_adapters_output, parse_llm_adapters
from fedreft_lib.tasks.fields import from_own_columns
from fedreft_lib.tasks.questions import Question

_LLM_ADAPTERS_NAMES = {"siqa": "social_i_qa", "arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}


def load_local(task: str, split: str, folder: Path) -> list[Question]:
    """The questions of one file; raises `DataError` that names the file, and the row where one is wrong."""
    path = find([task, _LLM_ADAPTERS_NAMES.get(task, task)], split, folder)
    questions = []
    for where, row in rows(path):
        try:
            questions.append(_question(task, row))
        except DataError as error:
            raise DataError(f"{path}, {where}: {error}.") from None
    if not questions:
        raise DataError(f"{path} holds no questions.")
    return questions


def find(names: Sequence[str], split: str, folder: Path, endings: Sequence[str] = (".json", ".jsonl")) -> Path:
    """The file of a task that goes by any of `names`; raises `DataError` that says how it would be called."""
    candidates = [
        f"{name}{joint}{split}{ending}" for name in dict.fromkeys(names) for joint in ("_", "/") for ending in endings
    ]
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(
        f"There is no {split} file of {names[0]} in {folder}: it would be called {' or '.join(candidates)}."
    )


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row with where it stands: "row 3" of a list (from 1), "line 3" of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: this is not UTF-8 text; save the file as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parse(text, path, first_line=1), start=1):
            yield f"row {number}", row
        return
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a text may hold U+2028
        if line.strip():
            yield f"line {number}", _parse(line, path, first_line=number)


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}, line {line}: this is not JSON ({error.msg}, column {error.colno}).") from None


def _question(task: str, row: Any) -> Question:
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object with named columns, got {type(row).__name__}")
    if "instruction" in row and task in TASKS:
        return _from_llm_adapters(task, row)
    if "gold" in row or task not in TASKS:
        return _from_our_columns(task, row)
    return from_own_columns(task, row)


def _from_llm_adapters(task: str, row: dict[str, Any]) -> Question:
    _require(row, "instruction", "output", "answer")
    if row.get("input"):
        raise DataError("the column input must be empty: no LLM-Adapters commonsense task has one")
    question = parse_llm_adapters(task, str(row["instruction"]), row["answer"])
    if row["output"] != llm_adapters_output(question):
        raise DataError(f"the output {row['output']!r} does not say the answer {row['answer']!r}")
    return question


def _from_our_columns(task: str, row: dict[str, Any]) -> Question:
    _require(row, "question", "choices", "gold")
    if not isinstance(row["choices"], list):
        raise DataError("choices must be a list of texts")
    return Question(task, row.get("context", ""), row["question"], tuple(row["choices"]), row["gold"])


def _require(row: dict[str, Any], *columns: str) -> None:
    missing = [column for column in columns if column not in row]
    if missing:
        raise DataError(f"there is no column {' or '.join(missing)} among {', '.join(row)}")
