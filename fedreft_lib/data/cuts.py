"""How many texts did not fit into max_length and were cut, for each client and split.

    prompts    lost their beginning
    answers    lost their end: training answers, responses, options
    texts      lost their end: an encoder's single texts and pairs

A run's manifest has the counts of every client, without zeros.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

Cuts = dict[str, dict[str, int]]  # of one client: split -> kind of text -> number
LOST = {"prompts": "their beginning", "answers": "their end", "texts": "their end"}


def counted(splits: Mapping[str, Iterable[Mapping[str, int]]]) -> Cuts:
    """How many texts of each split were cut, from the counts of its parts; without splits where none was cut."""
    found = {split: sum(map(Counter, parts), Counter()) for split, parts in splits.items()}
    return {split: dict(counts) for split, counts in found.items() if counts}


def in_words(cut: Mapping[str, Cuts]) -> str:
    """How many texts of all clients together were cut, in words; "" where none was.

    >>> in_words({"client1": {"train": {"prompts": 3}}, "client4": {"train": {"prompts": 1, "answers": 2}}})
    'train: 4 prompts lost their beginning, 2 answers lost their end'
    """
    of_all: dict[str, Counter] = {}
    for client in cut.values():
        for split, counts in client.items():
            of_all[split] = of_all.get(split, Counter()) + Counter(counts)
    return "; ".join(f"{split}: {_listed(counts)}" for split, counts in of_all.items())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[what]} {what} lost {part}" for what, part in LOST.items() if counts.get(what))
