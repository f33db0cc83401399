"""Exercises that check themselves: one friendly sentence about an answer, whatever a student has written.

    check(lambda: mixed(X, A, 0.3), lambda: mix(X, A, 0.3), "try λ = 0 and λ = 1 first: what should come out?")

Both sides are functions without arguments, so an error in the student's code is met here and becomes a sentence.
`check` prints it and never raises. `require` is for a teacher's hidden tests: it raises unless the answer is right. An
answer that prints without end is given up, and so is one that takes longer than SECONDS, where the system has an alarm
(Windows has none).
"""

import contextlib
import io
import signal
import threading
from collections.abc import Callable, Iterator
from textwrap import shorten

import numpy as np
import pandas as pd
import torch

RIGHT = "✓ right"
UNDONE = "not done yet: replace the `...`"
SECONDS = 10
LETTERS = 2_000  # that an answer may print
TOLERANCE = 1e-4
NUMBERS = (int, float, complex, np.generic, np.ndarray, torch.Tensor, pd.Series, pd.DataFrame)


class _GivenUp(BaseException):
    """Of an answer that runs or prints without end. A student's own `except Exception` does not stop it."""


def check(answer: Callable[[], object], expected: Callable[[], object], hint: str) -> None:
    """Print whether the answer is right, or what is wrong: its type, its shape, or, as the hint says, its value."""
    print(said(answer, expected, hint))


def require(answer: Callable[[], object], expected: Callable[[], object]) -> None:
    """Raise AssertionError, with the sentence that `check` would print, unless the answer is the expected one."""
    sentence = said(answer, expected, "another input should give another result")
    if sentence != RIGHT:
        raise AssertionError(sentence)


def said(answer: Callable[[], object], expected: Callable[[], object], hint: str) -> str:
    """One sentence about the answer. Never raises."""
    try:
        with _limited(6 * SECONDS):  # it may import what it compares with
            wanted = expected()
    except BaseException:  # a student has given a name that the check uses another meaning
        return "not checked: a name that the check needs has changed. Restart the kernel and run all cells from the top"
    try:
        with _limited(SECONDS):
            found = _found(answer(), wanted, hint)
    except BaseException as error:
        try:
            with _limited(SECONDS):
                found = _explained(error)
        except BaseException:  # the error is the student's own, and so is its message
            found = "it stopped with an error"
    return found if found in (RIGHT, UNDONE) else f"not right yet: {found}"


def _found(given: object, wanted: object, hint: str) -> str:
    """RIGHT, UNDONE, or what is wrong; the hint where only the value is."""
    if given is ... or (isinstance(given, (list, tuple)) and any(each is ... for each in given)):
        return UNDONE
    if wanted is None or isinstance(wanted, (bool, str)):
        return _word(given, wanted, hint)
    if given is None:
        return "it is None. Is a `return` missing?"
    if isinstance(wanted, (list, tuple)) and not all(type(each) in (int, float) for each in wanted):
        return _list(given, wanted, hint)
    return _numbers(given, _values(wanted).astype(float), hint)


def _word(given: object, wanted: bool | str | None, hint: str) -> str:
    """For None, True and False, and a text, whose case does not matter."""
    kinds = {bool: ((bool, np.bool_), "True or False"), str: (str, "a text"), type(None): (type(None), "None")}
    kind, name = kinds[type(wanted)]
    if not isinstance(given, kind):
        return f"{name} is expected here, and this is {_named(given)}"
    same = given.strip().casefold() == wanted.casefold() if isinstance(wanted, str) else bool(given) == bool(wanted)
    return RIGHT if same else hint


def _list(given: object, wanted: list | tuple, hint: str) -> str:
    if not isinstance(given, (list, tuple)):
        return f"a list is expected, and this is {_named(given)}"
    if len(given) != len(wanted):
        return f"{len(wanted)} entries are expected, and it has {len(given)}"
    found = [_found(*pair, hint) for pair in zip(given, wanted, strict=True)]
    return next((f"look at entry [{i}]: {each}" for i, each in enumerate(found) if each != RIGHT), RIGHT)


def _numbers(given: object, wanted: np.ndarray, hint: str) -> str:
    if not isinstance(given, (*NUMBERS, list, tuple)):
        return f"numbers are expected, and this is {_named(given)}"
    shape = _shape(given)
    if shape != wanted.shape and not (wanted.size == 1 and shape == (1,)):
        return f"its shape is {shape}, and {wanted.shape} is expected" + (
            " (transposed?)" if shape == wanted.shape[::-1] else ""
        )
    try:
        values = _values(given)
    except ValueError:
        return "its rows differ in length"
    if values.dtype.kind not in "iuf":
        kinds = {"b": "True and False", "c": "complex numbers"}
        return f"numbers are expected, and it holds {kinds.get(values.dtype.kind, 'something else')}"
    values = values.astype(float).reshape(wanted.shape)
    if np.isnan(values).any() and not np.isnan(wanted).any():
        return "it contains NaN, which is not a number. Is 0 divided by 0 somewhere?"
    if np.isinf(values).any() and not np.isinf(wanted).any():
        return "it contains an infinite number. Is something divided by 0?"
    near = {
        RIGHT: values,
        "its sign is the other way round": -values,
        "it is 100 times too small. Is a percentage asked for?": 100 * values,
        "it is 100 times too large. Is a share asked for, and no percentage?": values / 100,
        "it is transposed": values.T,
    }
    found = (name for name, other in near.items() if other.shape == wanted.shape and _close(other, wanted))
    return next(found, hint)


def _close(values: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.allclose(values, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))


def _values(given: object) -> np.ndarray:
    return np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given)


def _shape(given: object) -> tuple[int, ...]:
    """The shape; for nested lists, that of their first entries, so that an endless one is never built."""
    if isinstance(given, (list, tuple)):
        return (len(given), *(_shape(given[0]) if len(given) else ()))
    return tuple(np.shape(given))


def _named(given: object) -> str:
    return "None" if given is None else f"of the type {type(given).__name__}"


def _explained(error: BaseException) -> str:
    """A sentence about an error of the student's code."""
    if isinstance(error, NotImplementedError) or "ellipsis" in str(error):  # nbgrader's mark of what is not done; ours
        return UNDONE
    if isinstance(error, _GivenUp):
        return str(error)
    if isinstance(error, RecursionError):
        return "it calls itself without end. When does it stop?"
    message = shorten(str(error), 120)
    if isinstance(error, NameError):
        return f"{message}. Has the cell of that name been run, and is the name spelt right?"
    return f"it stopped with {type(error).__name__}" + (f": {message}" if message else "")


class _Paper(io.StringIO):
    """What an answer prints, up to LETTERS letters."""

    def write(self, text: str) -> int:
        if self.tell() + len(text) > LETTERS:
            raise _GivenUp("it prints without end. Does its loop stop?")
        return super().write(text)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Give up an answer that prints or runs without end. What it prints is shown at the end."""
    paper = _Paper()
    try:
        with contextlib.redirect_stdout(paper), np.errstate(all="ignore"), _alarm(seconds):
            yield
    finally:
        print(paper.getvalue(), end="")


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise _GivenUp(f"it takes longer than {seconds:g} seconds. Does its loop stop?")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
