"""What did not fit into max_length: how many texts lost a part, counted for each client and split, and said.

    prompts    lost their beginning
    answers    lost their end: what is trained on, a response, an option
    texts      lost their end, of an encoder's single texts and pairs

The manifest of a run has the counts of every client, without zeros.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .encoded import Encoded
    from .runs import Run

Cuts = dict[str, dict[str, int]]  # of a client: split, what, how many
LOST = {"prompts": "their beginning", "answers": "their end", "texts": "their end"}


def counted(splits: Mapping[str, Iterable["Encoded"]]) -> Cuts:
    """How many texts of each split were cut; splits where none was are left out."""
    found = {split: sum((Counter(part.cut) for part in parts), Counter()) for split, parts in splits.items()}
    return {split: dict(counts) for split, counts in found.items() if counts}


def in_words(cut: Mapping[str, Cuts]) -> str:
    """What was cut of all clients together; "" where nothing was.

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


def of_runs(runs: Sequence["Run"]) -> list[str]:
    """What a reader of these runs' results should know of it: one sentence, or none where all texts were whole."""
    cut = [run for run in runs if run.cut]
    if not cut:
        return []
    most = max(cut, key=lambda run: _number(run.cut))
    return [
        f"Not all texts fit into max_length in {len(cut)} of {len(runs)} runs; most were cut in {most.config.run_id} "
        f"(max_length={most.config.max_length}; {in_words(most.cut)})."
    ]


def _number(cut: Mapping[str, Cuts]) -> int:
    return sum(sum(counts.values()) for client in cut.values() for counts in client.values())
