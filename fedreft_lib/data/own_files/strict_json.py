"""JSON, read strictly.

Refused beyond what is no JSON: NaN and Infinity, numbers that are no finite float or have more than `MOST_DIGITS`
digits, a name twice in an object, values nested more than `DEEPEST` deep, half a surrogate pair. `json.loads` accepts
these, or fails in its own way (RecursionError for very deep nesting). So its decoder is used with hooks, and each
refusal is one sentence, to which `row_files` adds the row.
"""

import json
import re
from math import isfinite
from typing import Any

DEEPEST, MOST_DIGITS = 50, 300
NOT_JSON = "this is not JSON ({}); fix the row, or get the whole file again"
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # or a whole pair: that shows only in the value


class Fault(ValueError):
    """What is wrong, and the index of the character where it is."""

    def __init__(self, reason: str, place: int):
        super().__init__(reason)
        self.place = place


def loads(text: str) -> Any:
    """The value of a text that holds exactly one. Raises `Fault`."""
    value, end = decode(text, len(text) - len(text.lstrip(" \t\r\n")))
    if text[end:].strip(" \t\r\n"):
        raise Fault(NOT_JSON.format("more after its end"), end)
    return value


def decode(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at character `start`, and the index of the first character after it. Raises `Fault`."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise Fault(NOT_JSON.format(error.msg[0].lower() + error.msg[1:]), error.pos) from None
    except RecursionError:
        raise Fault(_TOO_DEEP, start) from None
    except ValueError as error:  # from the functions below
        raise Fault(str(error), start) from None
    brackets = text.count("[", start, end) + text.count("{", start, end)
    if brackets > DEEPEST and _depth(value) > DEEPEST:
        raise Fault(_TOO_DEEP, start)
    if _HALF_PAIR.search(text, start, end):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Fault("half a surrogate pair, \\ud800 to \\udfff, is no character", start) from None
    return value, end


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [part for part in level if isinstance(part, list | dict)]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth


def _number(text: str) -> int | float:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits, and {MOST_DIGITS} are the most")
    number = float(text) if any(mark in text for mark in ".eE") else int(text)
    if not isfinite(number):
        raise ValueError(f"the number {text} is too large")
    return number


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON; leave the row out or use null")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} is twice in one object")
    return found


_TOO_DEEP = f"lists and objects are nested more than {DEEPEST} deep"
_DECODER = json.JSONDecoder(
    parse_int=_number, parse_float=_number, parse_constant=_no_constant, object_pairs_hook=_no_repeats
)
