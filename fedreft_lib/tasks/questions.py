"""The two value types that everything about multiple-choice tasks passes around.

A `Question` keeps the dataset's own words; an `Example` is what a model sees once a prompt format has been
chosen. Splitting, mixing and checking for repeats work on questions, training and scoring on examples.
"""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from fedreft_lib.errors import DataError


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

    def __post_init__(self):
        texts = (self.context, self.question, *self.choices)
        if not all(isinstance(text, str) for text in texts):
            raise DataError("context, question and choices must be text")
        if not (self.context + self.question).strip():
            raise DataError("the question is empty")
        if len(self.choices) < 2:
            raise DataError(f"a question needs at least 2 choices, got {len(self.choices)}")
        if not isinstance(self.gold, int) or isinstance(self.gold, bool) or not 0 <= self.gold < len(self.choices):
            raise DataError(f"the right answer must be a choice from 0 to {len(self.choices) - 1}, got {self.gold!r}")

    @cached_property
    def uid(self) -> str:
        """16 hex digits of the content: what is asked and the set of choices.

        Upper and lower case, white space, the order of the choices, the task and the gold label play no part,
        so that a repeat is found across splits, files and tasks (ARC-e and ARC-c, say). Context and question count
        as one text because the LLM-Adapters files of SIQA do not keep them apart.
        """
        parts = [_normal(f"{self.context} {self.question}"), *sorted(map(_normal, self.choices))]
        return sha256("\x1f".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """A question in a prompt format: `prompt + options[i]` is the text of answer i, character for character."""

    task: str
    uid: str
    prompt: str
    options: tuple[str, ...]  # continuations that are scored, and the gold one trained on
    gold: int
    label: str  # the short answer word for scoring by generation ("answer1", "true"), "" in the plain format


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
