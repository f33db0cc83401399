"""Items from your own folder, for the tasks of the paper and for tasks of your own with any name.

For task NAME and split SPLIT ("train", "test" and, if you have one, "dev" or "validation") the folder has a file
`NAME_SPLIT` or `NAME/SPLIT`. It ends in .json (a list, an object of rows, or one object a line), .jsonl (one object a
line), .csv or .tsv (with a header). For the eight commonsense tasks, NAME may also be LLM-Adapters' name ("ARC-Easy",
"social_i_qa"). The columns determine the form of each row:

| form | columns | item |
|---|---|---|
| our own | question, choices (texts, in a table a JSON list), gold (index from 0), context if any | Question |
| commonsense task | LLM-Adapters' instruction, output, answer; or the dataset's own, see `fields` | Question |
| chat | messages (role, content) or conversations (from, value): the first user turn, the first answer | Exchange |
| any other | a question and an answer, see below | Question or Exchange |

The question is the first of these columns: instruction (with input), premise (with hypothesis), sentence1 (with
sentence2), question1 (with question2), text_a (with text_b), prompt, question, question_stem, input, sentence (with
pronoun), text, concepts. A column context or passage goes before it. The answer is the first of output, response,
completion, target, answer, answerKey, label_text, label_name, label. Such a row is a Question where the file names the
possible answers, by

1. a column choices, options or candidates: a list of texts (in a table a JSON list), or {text, label} as in ARC;
2. a file `NAME_labels.json` or `NAME/labels.json`: the list of the label names, for files whose labels are numbers;
3. a train file in which each row lists its choices as FLAN does, "OPTIONS:" and then a line "- ..." for each, and has
   one of them as its answer;
4. a train file with 2 to 20 different answers and, on average, at least 5 rows for each: these are the choices,
   sorted, whole numbers by size. (For free text with few answers use the chat form.)

With 1 and 2 the answer is a choice's text, its label, its index from 0 (a JSON number is one) or its letter from A;
`answers` says how these are distinguished, and what is refused. With 3 and 4 it is a choice's text. A test row with
another answer is refused, and so is a missing label (-1, "", null). All other rows are Exchanges of the kind "text".

A file is read unchanged, or refused in one sentence with the row; `plain_text`, `strict_json` and `row_files` have the
limits. Repeated questions are allowed: `partition.drop_repeats` keeps the first, and removes each test question from
the training sets, so that no question is shared between splits or clients. With setup="own" that holds within a client,
and `partition.check_disjoint` refuses a question that two clients have.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..commonsense import TASKS, llm_adapters_output, parse_llm_adapters
from ..items import Exchange, Item, Question
from .answers import A_CLASS, RawAnswer, Ways, in_order, needs_others, spelled, why_missing
from .fields import from_own_columns
from .plain_text import refused
from .row_files import at, find_split, look_for, rows
from .strict_json import Fault, loads

INPUT_MARK = "\n\n### Input:\n"  # between an instruction and its input, as in Alpaca's frame
MOST_LABELS, LEAST_ROWS_A_LABEL = 20, 5

_LLM_ADAPTERS_NAMES = {"siqa": "social_i_qa", "arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}
# The columns of a question, in order; each with a second column, which may be missing or empty.
_QUESTIONS = {
    "instruction": "input",
    "premise": "hypothesis",
    "sentence1": "sentence2",
    "question1": "question2",
    "text_a": "text_b",
    "prompt": None,
    "question": None,  # with context or passage before it
    "question_stem": None,
    "input": None,
    "sentence": "pronoun",
    "text": None,
    "concepts": None,  # a list of texts, as in CommonGen
}
_FREE_ANSWERS = ("output", "response", "completion", "target")
_ANSWERS = (*_FREE_ANSWERS, "answer", "answerKey", "label_text", "label_name", "label")
# Names of columns with one choice each, as in COPA, WinoGrande, SIQA, SWAG, PIQA and C-Eval.
_ONE_CHOICE = re.compile(r"[A-J]|(choice|option|ending|answer|sol|op)_?([0-9]|[a-jA-J])")
_OTHER_CONTEXTS = ("article", "paragraph", "sentence", "story", "document")  # other names of a context
_CHATS = {"messages": ("role", "content"), "conversations": ("from", "value")}


@dataclass(frozen=True)
class _QuestionRow:
    """A row of the last form, before it is known whether its answer is a choice, and which."""

    context: str
    question: str
    answer: str
    raw_answer: RawAnswer | None  # where the row or a file of label names has the possible answers


def load_local(task: str, split: str, folder: Path) -> list[Item]:
    """The items of one file; none for "dev" where there is no such file.

    Raises `DataError` that names the file and, where one row is wrong, the row.
    """
    path = _split_file(task, split, folder)
    if path is None:
        return []
    names = label_names(task, folder)
    found = _read(task, path, names)
    choices, ways = _no_choices, Ways(_raw_answers(found))
    if split != "train" and any(map(needs_others, _raw_answers(found))) and _has_train(task, folder):
        training = _read(task, _split_file(task, "train", folder), names)
        ways = Ways([*_raw_answers(training), *_raw_answers(found)])
    if any(_is_open(row) for _, row in found):
        training = found if split == "train" else _read(task, _split_file(task, "train", folder), names)
        choices = _choices_by_file([row for _, row in training if _is_open(row)])
    items = []
    for where, row in found:
        with at(path, where):
            items.append(_item(task, row, choices, ways) if isinstance(row, _QuestionRow) else row)
    return items


def with_input(instruction: str, extra: str) -> str:
    """An instruction and its input, which may be empty, as one text that `instruction.prompt` can frame."""
    return f"{instruction}{INPUT_MARK}{extra}" if extra.strip() else instruction


def _split_file(task: str, split: str, folder: Path) -> Path | None:
    """The file of a split; None where there is no "dev" file. Raises `NoFileError` where another one is missing."""
    return find_split([task, _LLM_ADAPTERS_NAMES.get(task, task)], split, folder)


def _has_train(task: str, folder: Path) -> bool:
    return look_for([task, _LLM_ADAPTERS_NAMES.get(task, task)], "train", folder) is not None


def label_names(task: str, folder: Path) -> tuple[str, ...]:
    """The label names in `NAME_labels.json` or `NAME/labels.json`; empty where there is no such file."""
    path = look_for([task], "labels", folder, (".json",))
    if path is None:
        return ()
    names = tuple(name for _, name in rows(path))
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise refused(path, "", "this must be a JSON list of at least two label names")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise refused(path, "", f"the label name {min(repeated)!r} is there twice")
    return names


def _read(task: str, path: Path, names: tuple[str, ...]) -> list[tuple[str, "Item | _QuestionRow"]]:
    found = []
    for where, row in rows(path):
        with at(path, where):
            found.append((where, _row(task, row, names)))
    if not found:
        raise refused(path, "", "the file holds no questions")
    return found


# ---- from a row to an item --------------------------------------------------------------------------------------


def _row(task: str, row: Any, names: tuple[str, ...]) -> "Item | _QuestionRow":
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object with named columns, got {type(row).__name__}")
    for column, (speaker, content) in _CHATS.items():
        if column in row:
            return _from_chat(task, row[column], speaker, content)
    if task in TASKS and ("answer" in row or not any(column in row for column in _FREE_ANSWERS)):
        return _from_commonsense(task, row)
    if "gold" in row:
        return _from_our_columns(task, row)
    return _from_question_column(row, names)


def _from_commonsense(task: str, row: dict[str, Any]) -> Question:
    if "instruction" in row:
        return _from_llm_adapters(task, row)
    if "gold" in row:
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
    choices, gold = _parsed(row["choices"]), row["gold"]
    if not isinstance(choices, list):
        raise DataError("choices must be a list of texts")
    if isinstance(gold, str) and re.fullmatch("[0-9]{1,9}", gold.strip()):  # a cell of a table
        gold = int(gold)
    return Question(task, row.get("context", ""), row["question"], tuple(choices), gold)


def _parsed(cell: Any) -> Any:
    """The value of a table's cell that is valid JSON; anything else unchanged."""
    with suppress(Fault):
        return loads(cell) if isinstance(cell, str) else cell
    return cell


def _require(row: dict[str, Any], *columns: str) -> None:
    missing = [column for column in columns if column not in row]
    if missing:
        raise DataError(f"there is no column {' or '.join(missing)} among {', '.join(row) or 'none'}")


def _from_chat(task: str, turns: Any, speaker: str, content: str) -> Exchange:
    """The first user turn and the first answer. All other turns, such as a system text, are left out."""
    first: dict[str, Any] = {}
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and isinstance(who := turn.get(speaker), str):
            first.setdefault({"human": "user", "gpt": "assistant"}.get(who, who), turn)
    if not {"user", "assistant"} <= first.keys():
        raise DataError("a chat must be a list of turns, of which one is the user's and one the assistant's")
    return Exchange(task, *(_text(content, first[who].get(content)) for who in ("user", "assistant")))


def _from_question_column(row: dict[str, Any], names: tuple[str, ...]) -> _QuestionRow:
    question_column = next((column for column in _QUESTIONS if column in row), None)
    answer_column = next((column for column in _ANSWERS if column in row), None)
    if question_column is None or answer_column is None:
        kind, known = ("asks", _QUESTIONS) if question_column is None else ("answers", _ANSWERS)
        raise DataError(f"no column {kind}: there must be one of {', '.join(known)}, got {', '.join(map(str, row))}")
    second_column = _QUESTIONS[question_column]
    first, second = _text(question_column, row[question_column]), row.get(second_column)
    context = next((_text(c, row[c]) for c in ("context", "passage") if row.get(c)), "")
    read = (question_column, second_column)
    if unread := [column for column in _OTHER_CONTEXTS if row.get(column) and column not in read]:
        raise DataError(
            f"the column {unread[0]} is not read beside {question_column}: name it context, or take it out of the file"
        )
    if second in (None, "", []):  # but 0 is an input
        question = first
    elif question_column == "instruction":
        question = with_input(first, _text("input", second))
    else:
        question = "\n".join(
            f"{column.capitalize().replace('_', ' ')}: {_text(column, row[column])}" for column in read
        )
    choices, labels = _choices_by_row(row) or (names, ())
    if not choices and (apart := [column for column in row if _ONE_CHOICE.fullmatch(str(column))]):
        raise DataError(
            f"the columns {', '.join(apart)} look like one choice each: put them into a column choices, a list of texts"
        )
    if answer_column.startswith("label") and (missing := why_missing(row[answer_column])):
        raise DataError(f"the column {answer_column} must hold text, got {row[answer_column]!r}{missing}{A_CLASS}")
    answer = _text(answer_column, row[answer_column])
    value = row[answer_column] if isinstance(row[answer_column], int | float) else answer
    return _QuestionRow(context, question, answer, RawAnswer(value, choices, labels) if choices else None)


def _choices_by_row(row: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """The choices that the row itself has, and their labels, if any; numbers stay numbers."""
    column = next((c for c in ("choices", "options", "candidates") if row.get(c) not in (None, "")), None)
    if column is None:
        return None
    value = _parsed(row[column])
    texts, labels = (value.get("text"), value.get("label", [])) if isinstance(value, dict) else (value, [])
    if not isinstance(texts, list) or not texts or not isinstance(labels, list):
        raise DataError(f"{column} must be a list of texts, or an object with the lists text and label")
    if labels and not len(set(map(spelled, labels))) == len(labels) == len(texts):
        raise DataError(f"{column} must have one label for each text, all different, got {labels!r}")
    read = tuple((_text(column, text), text) for text in texts)
    return tuple(value if isinstance(value, int | float) else text for text, value in read), tuple(labels)


# ---- the possible answers of a file -----------------------------------------------------------------------------


def _is_open(row: "Item | _QuestionRow") -> bool:
    return isinstance(row, _QuestionRow) and row.raw_answer is None


def _raw_answers(found: list[tuple[str, "Item | _QuestionRow"]]) -> list[RawAnswer]:
    return [row.raw_answer for _, row in found if isinstance(row, _QuestionRow) and row.raw_answer]


def _choices_by_file(training: list[_QuestionRow]) -> Callable[[_QuestionRow], tuple[str, ...]]:
    """A function from a row to its choices, by points 3 and 4 above: from its text, from all answers, or none."""
    if all(row.answer in _flan_options(row) for row in training):
        return _flan_options
    answers = {row.answer for row in training}
    if 2 <= len(answers) <= min(MOST_LABELS, len(training) / LEAST_ROWS_A_LABEL):
        return lambda row: tuple(in_order(answers))
    return _no_choices


def _no_choices(row: _QuestionRow) -> tuple[str, ...]:
    return ()


def _flan_options(row: _QuestionRow) -> tuple[str, ...]:
    listed = re.search(r"^OPTIONS:[ \t\r]*((?:\n[ \t]*-[^\n]*)+)", row.question, re.MULTILINE)
    return tuple(line.strip()[1:].strip() for line in listed[1].strip().split("\n")) if listed else ()


def _item(task: str, row: _QuestionRow, choices_of: Callable[[_QuestionRow], tuple[str, ...]], ways: Ways) -> Item:
    if row.raw_answer:
        choices, answer = tuple(map(spelled, row.raw_answer.choices)), ways.choice(row.raw_answer)
    else:
        choices, answer = choices_of(row), row.answer
    if not choices:
        return Exchange(task, f"{row.context}\n{row.question}".lstrip("\n"), answer)
    if answer not in choices:
        raise DataError(f"the answer {answer!r} is none of the choices {', '.join(map(repr, choices))}")
    question = row.question.replace(INPUT_MARK, "\n")
    of_file = row.raw_answer is None and choices_of is not _flan_options
    return Question(task, row.context, question, choices, choices.index(answer), of_file)


def _text(column: str, value: Any) -> str:
    """A cell as text without surrounding white space; true, false, numbers and lists of texts count as text too."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    if isinstance(value, (bool, int, float)):
        value = spelled(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"the column {column} must hold text, got {value!r}")
    return value.strip()
