"""Which choice a row's answer means. An answer can be written in four ways.

    text    the choice's own words            {"choices": ["no", "yes"], "answer": "yes"}
    label   the row's own name of a choice    {"choices": {"text": ["no", "yes"], "label": ["1", "2"]}, "answer": "2"}
    index   from 0, a number or its digits    {"choices": ["no", "yes"], "answer": 1}
    letter  from A                            {"choices": ["no", "yes"], "answer": "B"}

A JSON number (with or without .0) is an index and a text is a text, so {"choices": ["1", "2"], "answer": 1} is "2".
Where the ways lead to different choices, the rest of the file decides:

* In one file, all answers of one form (numbers, digits as text, single capital letters) are written in one way. So a
  way counts only if it fits each of them. Answers 15, 18 and 3 with choices "3", "12", "15", "18" are texts.
* Of the ways that fit, a label wins. For a JSON number, it wins only if there are numbers among the labels. A label
  that is a text, as "1", is then as likely as an index; a choice that is such a text does not count beside other ways;
  a choice that is a number itself is as likely as an index.
* For texts, only the ways count that fit all texts of the file, of any form.

An answer that still has two meanings is refused, and so is a form whose answers are written in different ways. Nothing
is ever counted from 1: a file that does so is noticed only where an answer is out of range, and is refused there. For a
test set, the training file is evidence too, so that both are read alike.
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
class RawAnswer:
    """An answer and its choices as they are in the file: texts, numbers, true or false."""

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
        """For each way that is possible, the choice that the answer means."""
        text, texts = spelled(self.answer), tuple(map(spelled, self.choices))
        if isinstance(self.answer, bool) and text not in texts:
            text = text.capitalize()  # as Python writes it
        places = {"text": _place(text, texts), "label": _place(text, tuple(map(spelled, self.labels)))}
        if _is_number(self.answer):
            for way, values in (("text", self.choices), ("label", self.labels)):
                same = [i for i, value in enumerate(values) if _is_number(value) and value == self.answer]
                places[way] = same[0] if same else places[way]
            places["index"] = int(self.answer) if self.answer in range(len(texts)) else None
        else:
            places["index"] = _place(text, tuple(map(str, range(len(texts)))))
            places["letter"] = _place(text, tuple(ascii_uppercase[: len(texts)]))
        return {way: texts[place] for way, place in places.items() if place is not None and place < len(texts)}


class Ways:
    """The ways in which the answers of a file, and of the training file beside it, are written."""

    def __init__(self, answers: Iterable[RawAnswer]):
        self.of_form: dict[str, set[str]] = {}
        self.of_texts: set[str] | None = None
        for raw in answers:
            if ways := set(raw.meanings):
                self.of_form[raw.form] = self.of_form.get(raw.form, ways) & ways
                if raw.form != "number":
                    self.of_texts = ways if self.of_texts is None else self.of_texts & ways

    def choice(self, raw: RawAnswer) -> str:
        """The choice that the answer means. Raises `DataError` where it means none, or several are possible."""
        meanings, form = raw.meanings, raw.form
        if not meanings:
            raise DataError(_none_of(raw))
        if form == "text" and len(set(meanings.values())) == 1:
            return next(iter(meanings.values()))
        fitting = {way: choice for way, choice in meanings.items() if way in self.of_form[form]}
        if not fitting:
            raise DataError(
                f"the answer {raw.answer!r} is {_listed(meanings)}, and other answers of this file that are a {form} "
                f"cannot be read that way; {_HOW}"
            )
        if form == "number":
            looks_like = []
            if "label" in fitting and any(map(_is_number, raw.labels)):
                looks_like = ["text", "index"]
            elif len(fitting) > 1 and not any(map(_is_number, raw.choices)):
                looks_like = ["text"]
            fitting = {way: choice for way, choice in fitting.items() if way not in looks_like}
        elif "label" in fitting:
            return fitting["label"]
        elif len(set(fitting.values())) > 1:
            fitting = {way: choice for way, choice in fitting.items() if way in self.of_texts} or fitting
        if len(set(fitting.values())) > 1:
            raise DataError(f"the answer {raw.answer!r} may be {_listed(fitting)}; {_HOW}")
        return next(iter(fitting.values()))


def needs_others(raw: RawAnswer) -> bool:
    """Whether the answer is a text or a label in this row, but could be an index or a letter in another one."""
    return raw.form != "text" and bool({"text", "label"} & raw.meanings.keys())


def spelled(value: Any) -> str:
    """A text without surrounding white space; a number, true or false as JSON writes it."""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def in_order(names: Iterable[Any]) -> list[Any]:
    """The names sorted; whole numbers by size, also where all of them are written as texts."""
    names = list(names)
    whole = all(isinstance(name, str) and re.fullmatch("0|-?[1-9][0-9]{0,300}", name) for name in names)
    return sorted(names, key=int) if whole else sorted(names)


A_CLASS = "; if it is the name of a class, choose another one"


def why_missing(label: Any) -> str:
    """Why -1, null and "" are refused, which GLUE's public test sets and others have in place of labels; else ""."""
    value = label.strip() if isinstance(label, str) else label
    if value is None or value in ("", -1) or (isinstance(value, str) and re.fullmatch(r"-1(\.0*)?", value)):
        return ", which stands for no label; leave out the rows without one, or use a file with labels"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(text: str, known: tuple[str, ...]) -> int | None:
    return known.index(text) if text in known else None


def _listed(meanings: dict[str, str]) -> str:
    return " or ".join(f"the {way} of {choice!r}" for way, choice in meanings.items())


def _none_of(raw: RawAnswer) -> str:
    choices = ", ".join(repr(spelled(choice)) for choice in raw.choices)
    counted = raw.form in ("number", "text of digits") and spelled(raw.answer) == str(len(raw.choices))
    hint = "; an index counts from 0 (if this file counts from 1, take one off)" if counted else ""
    return f"the answer {spelled(raw.answer)!r} is none of the choices {choices}{hint or why_missing(raw.answer)}"
