"""Which of its choices a row's answer means, where an answer can be said in four ways.

    text    the choice's own words            {"choices": ["no", "yes"], "answer": "yes"}
    label   what the row itself calls it      {"choices": {"text": ["no", "yes"], "label": ["1", "2"]}, "answer": "2"}
    index   from 0, a number or its digits    {"choices": ["no", "yes"], "answer": 1}
    letter  from A                            {"choices": ["no", "yes"], "answer": "B"}

A number of JSON (with or without .0) is an index and a text is a text, so {"choices": ["1", "2"], "answer": 1} is "2".
Where an answer could be meant in two ways that come to different choices, what else the file says decides:

* All its answers of one form (numbers, digits as text, single capital letters) are said in one way, so a way counts
  only if it fits each of them. Answers 15, 18 and 3 out of choices "3", "12", "15", "18" are texts.
* Of the ways that fit, a label counts before all others. But a number is no text that looks like it, and a label that
  looks like it is as likely as an index, as is a choice that is a number itself.
* For texts, the ways that fit all texts of the file, of whatever form.

What then still has two meanings is refused, as is a form whose answers are said in different ways. Nothing is ever
counted from 1: that shows only where an answer is out of range, and is refused there. For a test set the training file
is evidence, too, so that both are read alike.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase
from typing import Any

from ...errors import DataError

_HOW = "name the columns question, choices and gold, which is the index from 0"


@dataclass(frozen=True)
class Said:
    """An answer and what it may be: texts, numbers and true or false, as JSON or a table's cell gave them."""

    answer: Any
    choices: tuple[Any, ...]
    labels: tuple[Any, ...] = ()

    @cached_property
    def form(self) -> str:
        if _is_number(self.answer):
            return "number"
        if re.fullmatch("[0-9]+", spelled(self.answer)):
            return "text of digits"
        return "capital letter" if re.fullmatch("[A-Z]", spelled(self.answer)) else "text"

    @cached_property
    def meanings(self) -> dict[str, str]:
        """The choice that is meant in each of the ways that are possible."""
        said, texts = spelled(self.answer), tuple(map(spelled, self.choices))
        if isinstance(self.answer, bool) and said not in texts:
            said = said.capitalize()  # as Python writes it
        places = {"text": _place(said, texts), "label": _place(said, tuple(map(spelled, self.labels)))}
        if _is_number(self.answer):
            for way, values in (("text", self.choices), ("label", self.labels)):
                same = [i for i, value in enumerate(values) if _is_number(value) and value == self.answer]
                places[way] = same[0] if same else places[way]
            places["index"] = int(self.answer) if self.answer in range(len(texts)) else None
        else:
            places["index"] = _place(said, tuple(map(str, range(len(texts)))))
            places["letter"] = _place(said, tuple(ascii_uppercase[: len(texts)]))
        return {way: texts[place] for way, place in places.items() if place is not None and place < len(texts)}


class Ways:
    """The ways in which the answers of a file, and of the training file beside it, are said."""

    def __init__(self, answers: Iterable[Said]):
        self.of_form: dict[str, set[str]] = {}
        self.of_texts: set[str] | None = None
        for said in answers:
            if ways := set(said.meanings):
                self.of_form[said.form] = self.of_form.get(said.form, ways) & ways
                if said.form != "number":
                    self.of_texts = ways if self.of_texts is None else self.of_texts & ways

    def choice(self, said: Said) -> str:
        """The choice that the answer means; raises `DataError` where that is none or cannot be told."""
        meanings, form = said.meanings, said.form
        if not meanings:
            raise DataError(_none_of(said))
        if form == "text" and len(set(meanings.values())) == 1:
            return next(iter(meanings.values()))
        fitting = {way: choice for way, choice in meanings.items() if way in self.of_form[form]}
        if not fitting:
            raise DataError(
                f"the answer {said.answer!r} is {_listed(meanings)}, and other answers of this file that are a {form} "
                f"cannot be read so; {_HOW}"
            )
        if form == "number":
            looks_like = []
            if "label" in fitting and any(map(_is_number, said.labels)):
                looks_like = ["text", "index"]
            elif len(fitting) > 1 and not any(map(_is_number, said.choices)):
                looks_like = ["text"]
            fitting = {way: choice for way, choice in fitting.items() if way not in looks_like}
        elif "label" in fitting:
            return fitting["label"]
        elif len(set(fitting.values())) > 1:
            fitting = {way: choice for way, choice in fitting.items() if way in self.of_texts} or fitting
        if len(set(fitting.values())) > 1:
            raise DataError(f"the answer {said.answer!r} may be {_listed(fitting)}; {_HOW}")
        return next(iter(fitting.values()))


def needs_others(said: Said) -> bool:
    """Could the answer be an index or a letter in another row, and is a text or a label in this one?"""
    return said.form != "text" and bool({"text", "label"} & said.meanings.keys())


def spelled(value: Any) -> str:
    """A text without white space around it; a number, true or false as JSON writes it."""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def in_order(names: Iterable[Any]) -> list[Any]:
    """Sorted: whole numbers by size, also where they are written as texts, and all else as it is."""
    names = list(names)
    whole = all(isinstance(name, str) and re.fullmatch("0|-?[1-9][0-9]{0,300}", name) for name in names)
    return sorted(names, key=int) if whole else sorted(names)


A_CLASS = "; a class that you call so needs another name"


def why_missing(label: Any) -> str:
    """What to say of -1, null and "", which GLUE's public test sets and others have in place of labels; else ""."""
    said = label.strip() if isinstance(label, str) else label
    if said is None or said in ("", -1) or (isinstance(said, str) and re.fullmatch(r"-1(\.0*)?", said)):
        return ", which stands for no label; leave out the rows without one, or use a file with labels"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(said: str, known: tuple[str, ...]) -> int | None:
    return known.index(said) if said in known else None


def _listed(meanings: dict[str, str]) -> str:
    return " or ".join(f"the {way} of {choice!r}" for way, choice in meanings.items())


def _none_of(said: Said) -> str:
    choices = ", ".join(repr(spelled(choice)) for choice in said.choices)
    counted = said.form in ("number", "text of digits") and spelled(said.answer) == str(len(said.choices))
    hint = "; an index counts from 0 (if this file counts from 1, take one off)" if counted else ""
    return f"the answer {spelled(said.answer)!r} is none of the choices {choices}{hint or why_missing(said.answer)}"
