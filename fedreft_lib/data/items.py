"""The value types that tasks consist of.

An *item* keeps the dataset's own words and is one of three: a `Question` with choices, an `Exchange` that is answered
in free words, a `Labelled` text for a classification head. Splitting, mixing and checking for repeats need no more than
an item's `task` and `uid`. An `Example` is a question as a model sees it, once a prompt format has been chosen.
"""

import json
import unicodedata
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from math import isfinite
from typing import Literal

from ..errors import DataError


@dataclass(frozen=True)
class Question:
    """One multiple-choice question; a malformed one raises `DataError`.

    >>> q = Question("piqa", "", "open a jar", ("twist the lid", "twist the base"), 0)
    >>> q.choices[q.gold]
    'twist the lid'
    """

    task: str
    context: str  # passage (BoolQ), situation (SIQA), activity (HellaSwag), "" where there is none
    question: str  # question, goal (PIQA), sentence with _ (WinoGrande), beginning (HellaSwag)
    choices: tuple[str, ...]
    gold: int  # index into choices
    # The choices are all answers of a training file, which does not say what may be answered.
    of_file: bool = field(default=False, compare=False)

    def __post_init__(self):
        texts = (self.context, self.question, *self.choices)
        if not all(isinstance(text, str) for text in texts):
            raise DataError("context, question and choices must be text")
        if not (self.context + self.question).strip():
            raise DataError("the question is empty")
        if len(self.choices) < 2:
            raise DataError(f"a question needs at least 2 choices, got {len(self.choices)}")
        if len(set(self.choices)) == 1:  # two of several may be the same: 41 questions of SIQA and OpenBookQA are so
            raise DataError(f"all choices are the same, {self.choices[0]!r}")
        if not isinstance(self.gold, int) or isinstance(self.gold, bool) or not 0 <= self.gold < len(self.choices):
            raise DataError(f"the right answer must be a choice from 0 to {len(self.choices) - 1}, got {self.gold!r}")

    @cached_property
    def uid(self) -> str:
        """16 hex digits of the content: what is asked and the set of choices.

        Case, white space, how an accent is encoded, the order of the choices, the task and the gold label play no part,
        so that a repeat is found across splits, files and tasks (ARC-e and ARC-c, say). Context and question count
        as one text because the LLM-Adapters files of SIQA do not keep them apart.
        """
        return _uid(f"{self.context} {self.question}", *sorted(map(_normal, self.choices)))


@dataclass(frozen=True)
class Exchange:
    """What is asked and what is to be written; a malformed one raises `DataError`.

    A generation is graded by `kind`: the right "number", the right "letter" (a choice of AQuA), or the likeness of
    a free "text" to the response.

    >>> Exchange("gsm8k", "2 and 3 are?", "2 + 3 = 5.\\n#### 5", "5", "number").answer
    '5'
    """

    task: str
    question: str
    response: str  # what is trained on; for numbers and letters with its chain of thought
    answer: str = ""  # what a generation must come to; "" for free text
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
        """16 hex digits of what is asked; the response plays no part."""
        return _uid(self.question)


@dataclass(frozen=True)
class Labelled:
    """A text or a pair of texts with a class, or with a score where the task is a regression (`classes` 0)."""

    task: str
    text_a: str
    text_b: str  # "" for tasks with one text
    label: int | float
    classes: int
    names: tuple[str, ...] = field(default=(), compare=False)  # of the classes of a task of one's own

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
    """All that an item says, in a form that no other item has: what it asks, and also what it is graded by."""
    return json.dumps([type(item).__name__, *(getattr(item, field.name) for field in fields(item))])


@dataclass(frozen=True)
class Example:
    """A question in a prompt format: `prompt + options[i]` is the text of answer i, character for character."""

    task: str
    uid: str
    prompt: str
    options: tuple[str, ...]  # continuations that are scored, and the gold one trained on
    gold: int
    label: str  # the short answer word for scoring by generation ("answer1", "true"), "" in the plain format


def _uid(*parts: str) -> str:
    return sha256("\x1f".join(map(_normal, parts)).encode()).hexdigest()[:16]


def _normal(text: str) -> str:
    # Without any white space: copies of one dataset differ in the blanks around their full stops (MAWPS, SVAMP). In one
    # form (NFC), since an accent may be a character of its own.
    return "".join(unicodedata.normalize("NFC", text.casefold()).split())
