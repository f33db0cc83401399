"""Four ways to answer a question, which a reader and a simple rule tell apart at the first words.

| style | an answer to "Why does ice float?" would begin |
|---|---|
| telegram | ICE IS LESS DENSE THAN WATER STOP |
| steps | 1. Water expands when it freezes. |
| tale | Once upon a time a lump of ice |
| card | Topic: ice |

`styles.jsonl` holds 60 questions and answers in each, written for this project. The questions are of the same ten kinds
in all styles (animals, plants, the body, weather and sky, the earth, food, the house, physics, transport, culture), and
none is in two of them: what a client's answers look like comes from its training and from whom it listens to.

A rule looks at how a text begins or at the form of its letters, never at its end, which a short generation lacks.
"""

import re
from collections.abc import Callable


def is_telegram(text: str) -> bool:
    """At least 10 letters, and 9 in 10 of them capitals."""
    letters = [letter for letter in text if letter.isalpha()]
    return len(letters) >= 10 and sum(map(str.isupper, letters)) >= 0.9 * len(letters)


def is_steps(text: str) -> bool:
    """A list that begins with number 1."""
    return re.match(r"\s*1[.)]\s+\S", text) is not None


def is_tale(text: str) -> bool:
    """It begins as tales do."""
    return text.strip().casefold().startswith("once upon a time")


def is_card(text: str) -> bool:
    """The first line is a word, a colon and something more."""
    return re.match(r"\s*[A-Z][a-z]+: *\S", text) is not None


STYLES: dict[str, Callable[[str], bool]] = {
    "telegram": is_telegram,
    "steps": is_steps,
    "tale": is_tale,
    "card": is_card,
}
