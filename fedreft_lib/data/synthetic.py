"""Made-up questions for tests and the smoke profile: no download, no meaning, but something to learn.

The question names a word, and the correct choice is that word. Correct and wrong words come from two separate lists of
made-up words. Even a tiny model can learn the answer in two ways: by copying, or by learning which words are correct.
Each task has its own words, so tasks differ like real ones.
"""

import numpy as np

from ..seeds import derive
from .items import Question

N_QUESTIONS = 400  # per task and split
_CHOICES = {"piqa": 2, "winogrande": 2, "siqa": 3}  # the others have 4, BoolQ true and false
_ONSETS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def make_questions(task: str, split: str, seed: int) -> list[Question]:
    """400 questions, a function of (task, split, seed); no question is in both splits."""
    right, wrong = _words(task)
    rng = np.random.default_rng(derive(seed, "synthetic", task, split))
    first = 0 if split == "train" else N_QUESTIONS  # the number in the text keeps the splits apart
    return [_make(task, first + i, right, wrong, rng) for i in range(N_QUESTIONS)]


def _make(task: str, number: int, right: list[str], wrong: list[str], rng: np.random.Generator) -> Question:
    word = right[rng.integers(len(right))]
    if task == "boolq":
        gold = int(rng.integers(2))
        said = word if gold == 0 else wrong[rng.integers(len(wrong))]
        return Question(task, f"Synthetic passage {number}: {said}.", f"is {said} a good word", ("true", "false"), gold)
    n = _CHOICES.get(task, 4)
    choices = [wrong[i] for i in rng.choice(len(wrong), size=n, replace=False)]
    gold = int(rng.integers(n))
    choices[gold] = word
    blank = ", and the word is _." if task == "winogrande" else ""
    return Question(task, "", f"Synthetic question {number} asks for {word}{blank}", tuple(choices), gold)


def _words(task: str) -> tuple[list[str], list[str]]:
    """8 correct and 8 wrong words of a task, the same for every seed: the seed changes the questions, not the task."""
    syllables = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    order = np.random.default_rng(derive(0, "synthetic words", task)).permutation(len(syllables))
    words = [syllables[a] + syllables[b] for a, b in zip(order[:16], order[16:32], strict=True)]
    return words[:8], words[8:]
