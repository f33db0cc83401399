"""The value types of tasks.

An *item* keeps the dataset's own words. There are three kinds: a `Question` with choices, an `Exchange` with a
free-text response, a `Labelled` text for a classification head. Splitting, mixing and checking for repeats need only an
item's `task` and `uid`. An `Example` is a question in a prompt format, as a model sees it.
"""

import json
import unicodedata
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from math import isfinite
from typing import Literal

from ..errors import DataError

UID = 16  # hex digits
_IN_A_ROW = ("context", "question", "choices", "gold")


@dataclass(frozen=True)
class Question:
    """One multiple-choice question. Raises DataError for a malformed one.

    >>> q = Question("piqa", "", "open a jar", ("twist the lid", "twist the base"), 0)
    >>> q.choices[q.gold]
    'twist the lid'
    """

    task: str
    context: str  # passage (BoolQ), situation (SIQA), activity (HellaSwag), "" where there is none
    question: str  # question, goal (PIQA), sentence with _ (WinoGrande), beginning (HellaSwag)
    choices: tuple[str, ...]
    gold: int  # index into choices
    # The choices are all answers in a training file, since the file does not list its choices.
    of_file: bool = field(default=False, compare=False)

    def __post_init__(self):
        texts = (self.context, self.question, *self.choices)
        if not all(isinstance(text, str) for text in texts):
            raise DataError("context, question and choices must be text")
        if not (self.context + self.question).strip():
            raise DataError("the question is empty")
        if len(self.choices) < 2:
            raise DataError(f"a question needs at least 2 choices, got {len(self.choices)}")
        if len(set(self.choices)) == 1:  # two of several may be equal, as in 41 questions of SIQA and OpenBookQA
            raise DataError(f"all choices are the same, {self.choices[0]!r}")
        if not isinstance(self.gold, int) or isinstance(self.gold, bool) or not 0 <= self.gold < len(self.choices):
            raise DataError(f"the right answer must be a choice from 0 to {len(self.choices) - 1}, got {self.gold!r}")

    def row(self) -> str:
        """The text for `of_row`: uid and JSON. Neither has a line break."""
        return f"{self.uid}{json.dumps([getattr(self, name) for name in _IN_A_ROW])}"

    @classmethod
    def of_row(cls, task: str, row: str) -> "Question":
        """The question of a `row`, not checked again. Its JSON is parsed when a field is read that is in there: most
        questions of a set are never looked at."""
        question = object.__new__(cls)
        object.__setattr__(question, "task", task)
        object.__setattr__(question, "uid", row[:UID])
        object.__setattr__(question, "_row", row)
        return question

    def __getattr__(self, name: str) -> object:
        """A field that is not there yet, see `of_row`."""
        if name not in _IN_A_ROW or "_row" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        context, question, choices, gold = json.loads(vars(self)["_row"][UID:])
        vars(self).update(context=context, question=question, choices=tuple(choices), gold=gold)
        return vars(self)[name]

    @cached_property
    def uid(self) -> str:
        """16 hex digits of the content: the question and the set of choices.

        Case, white space, the encoding of accents, the order of the choices, the task and the gold label do not matter,
        so repeats are found across splits, files and tasks (for instance ARC-e and ARC-c). Context and question count
        as one text, because LLM-Adapters' files of SIQA do not separate them.
        """
        return _uid(f"{self.context} {self.question}", *sorted(map(_normal, self.choices)))


@dataclass(frozen=True)
class Exchange:
    """A question with a free-text response. Raises DataError for a malformed one.

    A generation is graded by `kind`: the correct "number", the correct "letter" (a choice of AQuA), or the similarity
    of a free "text" to the response.

    >>> Exchange("gsm8k", "2 and 3 are?", "2 + 3 = 5.\\n#### 5", "5", "number").answer
    '5'
    """

    task: str
    question: str
    response: str  # the training text; for numbers and letters with its chain of thought
    answer: str = ""  # the result that a generation must reach; "" for free text
    kind: Literal["number", "letter", "text"] = "text"

    def __post_init__(self):
        if not all(isinstance(text, str) for text in (self.question, self.response, self.answer)):
            raise DataError("question, response and answer must be text")
        if not self.question.strip() or not self.response.strip():
            raise DataError("the question or the response is empty")
        if (self.kind == "text") == bool(self.answer):
            raise DataError(f"an exchange of the kind {self.kind!r} cannot have the answer {self.answer!r}")

    @cached_property
    def uid(self) -> str:
        """16 hex digits of the question; the response does not matter."""
        return _uid(self.question)


@dataclass(frozen=True)
class Labelled:
    """A text or a pair of texts with a class, or with a score for a regression (`classes` 0). Raises DataError."""

    task: str
    text_a: str
    text_b: str  # "" for tasks with one text
    label: int | float
    classes: int
    names: tuple[str, ...] = field(default=(), compare=False)  # of the classes of your own task

    def __post_init__(self):
        if not all(isinstance(text, str) for text in (self.text_a, self.text_b)) or not self.text_a.strip():
            raise DataError("the first text is missing or empty")
        if self.classes and not (type(self.label) is int and 0 <= self.label < self.classes):
            raise DataError(f"the label must be a class from 0 to {self.classes - 1}, got {self.label!r}")
        if not self.classes and not (type(self.label) is float and isfinite(self.label)):
            raise DataError(f"the label must be a finite number, got {self.label!r}")

    @cached_property
    def uid(self) -> str:
        """16 hex digits of the texts."""
        return _uid(self.text_a, self.text_b)


Item = Question | Exchange | Labelled


def content(item: Item) -> str:
    """All fields of an item as text, different for every different item: the question and its answer."""
    return json.dumps([type(item).__name__, *(getattr(item, field.name) for field in fields(item))])


@dataclass(frozen=True)
class Example:
    """A question in a prompt format: `prompt + options[i]` is exactly the text with answer i."""

    task: str
    uid: str
    prompt: str
    options: tuple[str, ...]  # continuations to score; the gold one is trained on
    gold: int
    label: str  # the short answer word for scoring by generation ("answer1", "true"), "" in the plain format


def _uid(*parts: str) -> str:
    return sha256("\x1f".join(map(_normal, parts)).encode()).hexdigest()[:UID]


def _normal(text: str) -> str:
    # Without white space, since copies of a dataset differ in spaces around full stops (MAWPS, SVAMP). In one form
    # (NFC), since an accent may be a separate character.
    return "".join(unicodedata.normalize("NFC", text.casefold()).split())
