"""Benchmark tasks: where questions come from, and what a model sees of them."""

from fedreft_lib.tasks.commonsense import TASKS, render
from fedreft_lib.tasks.questions import Example, Exchange, Item, Labelled, Question
from fedreft_lib.tasks.sources import load_questions

__all__ = ["TASKS", "Example", "Exchange", "Item", "Labelled", "Question", "load_questions", "render"]
