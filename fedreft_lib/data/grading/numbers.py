"""The answer in a generated text, found and compared as in ReFT and LLM-Adapters.

A number is the last one of the text, after all commas are removed. A letter is the first capital from A to E. A number
is correct within 0.001. Sources: pyreft, `examples/loreft/compute_metrics.py`; LLM-Adapters, `evaluate.py`, whose
regular expression pyreft uses. Published results were graded in this way, so its oddities are kept:

    text                         number   why
    "$1,234.50 a day", "50%"     1234.5, 50   units are ignored
    "3, 4" and "3,4"             4 and 34     a list without spaces becomes one number
    "-5", "-$5", "9 - 5", "9-5"  -5, 5, 5, -5 a minus counts where it touches the digit
    "3/4", "1 1/2"               4, 2         a fraction is its last number
    "2e3"                        3            so is scientific notation
    "12 of the 15 apples"        15           the last one, even where another was meant

The first letter is worse: a chain of thought that starts with "Ben" has the answer B. pyreft's own comment admits it.
Of the 123 rationales in LLM-Adapters' AQuA test file that reach the correct letter, 24 are graded as wrong.

Where the two differ, we follow ReFT. LLM-Adapters drops the text after a second "### Response:", ReFT reads it too.
LLM-Adapters reads letters for the dataset AQuA, ReFT wherever the gold answer is not a number (our `kind`).
LLM-Adapters has no case for MAWPS. For a text without a number ReFT returns infinity; we return None.
"""

import re

from ..items import Exchange

TOLERANCE = 0.001


def extract_number(text: str) -> float | None:
    """The last number of the text, or None where there is none.

    >>> extract_number("5 apples at $1,200 each cost $6,000.")
    6000.0
    """
    found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return float(found[-1]) if found else None


def extract_letter(text: str) -> str | None:
    """The first capital letter from A to E, or None where there is none.

    >>> extract_letter("The answer is (D).")
    'D'
    """
    found = re.search(r"[A-E]", text)
    return found[0] if found else None


def same_number(a: float | None, b: float | None) -> bool:
    """Whether both numbers exist and differ by at most 0.001."""
    return a is not None and b is not None and abs(a - b) <= TOLERANCE


def graded(exchange: Exchange, generation: str) -> bool:
    """Whether the generated text (without the prompt) has the exchange's answer.

    Raises ValueError for an exchange of the kind "text", which has no single correct answer.
    """
    if exchange.kind == "letter":
        return extract_letter(generation) == exchange.answer.strip()
    if exchange.kind == "number":
        return same_number(extract_number(generation), _gold(exchange.answer))
    raise ValueError("an exchange of the kind 'text' is not right or wrong")


def _gold(answer: str) -> float | None:
    """ReFT reads the gold answers of MATH10K's tasks as numbers, and those of GSM8K ("1,200") like generated text."""
    try:
        return float(answer)
    except ValueError:
        return extract_number(answer)
