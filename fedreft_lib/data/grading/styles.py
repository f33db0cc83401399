"""Four styles of answers, which a reader and a simple rule distinguish by the first words.

| style | an answer to "Why does ice float?" would begin |
|---|---|
| telegram | ICE IS LESS DENSE THAN WATER STOP |
| steps | 1. Water expands when it freezes. |
| tale | Once upon a time a lump of ice |
| card | Topic: ice |

`styles.jsonl` has 60 questions and answers for each, written for this project. All styles have the same ten kinds of
questions (animals, plants, the body, weather and sky, the earth, food, the house, physics, transport, culture), and no
question is in two styles. The style of a client's answers therefore comes only from its training and its mixing.

A rule checks the beginning of a text or the form of its letters, never its end, which a short generation does not have.
"""

import re
from collections.abc import Callable


def is_telegram(text: str) -> bool:
    """At least 10 letters, and at least 9 of 10 are capitals."""
    letters = [letter for letter in text if letter.isalpha()]
    return len(letters) >= 10 and sum(map(str.isupper, letters)) >= 0.9 * len(letters)


def is_steps(text: str) -> bool:
    """It begins with a list item of number 1."""
    return re.match(r"\s*1[.)]\s+\S", text) is not None


def is_tale(text: str) -> bool:
    """It begins with "Once upon a time"."""
    return text.strip().casefold().startswith("once upon a time")


def is_card(text: str) -> bool:
    """It begins with a capitalised word, a colon and more text."""
    return re.match(r"\s*[A-Z][a-z]+: *\S", text) is not None


STYLES: dict[str, Callable[[str], bool]] = {
    "telegram": is_telegram,
    "steps": is_steps,
    "tale": is_tale,
    "card": is_card,
}
