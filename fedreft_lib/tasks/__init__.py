"""Benchmark tasks: where items come from, and what a model sees of them."""

from fedreft_lib.tasks.commonsense import TASKS, render
from fedreft_lib.tasks.families import FAMILIES, Family
from fedreft_lib.tasks.questions import Example, Exchange, Item, Labelled, Question
from fedreft_lib.tasks.sources import load_questions

__all__ = ["FAMILIES", "TASKS", "Example", "Exchange", "Family", "Item", "Labelled", "Question"]
__all__ += ["load_questions", "render"]
