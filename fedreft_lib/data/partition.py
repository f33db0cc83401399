"""The data of every client of a federation.

A partition is a matrix of counts, clients x tasks. The setups differ only in this matrix.

    distinct    the paper's Distinct Task (DT): each client has one task
    mixed       the paper's Mixed Task (MT): each client has a random part of the shuffled union of all tasks
    iid         each client has the same shares of tasks, those of the union (MT without random shares)
    dirichlet   client k's shares of tasks are drawn from Dirichlet(alpha, ..., alpha)

With setup "own" (`own_partition`) clients use their own questions: nothing is dealt, and sizes are upper bounds.

The paper does not print which client had which task, or how the parts were drawn: this is our reconstruction. In
`mixed` and `iid`, a task that is much larger than the others also has a much larger share.

No question is in two clients, or in two of a client's three sets. All draws are functions of (seed, setup, task or
client).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError, DataError
from ..seeds import derive
from .items import Exchange, Item, Labelled, content

if TYPE_CHECKING:
    import pandas as pd

SETUPS = ("distinct", "mixed", "iid", "dirichlet")
SPLITS = ("train", "held_out", "test")


@dataclass(frozen=True)
class Pool:
    """All items of one task. Held-out items come from `dev` where there is one, else from the training set."""

    train: tuple[Item, ...]
    test: tuple[Item, ...]
    dev: tuple[Item, ...] = ()


@dataclass(frozen=True)
class ClientData:
    """One client's questions. Those of `held_out` are never trained on."""

    name: str
    train: tuple[Item, ...]
    held_out: tuple[Item, ...]
    test: tuple[Item, ...]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the name and of the full content of each set's items, in their order."""
        digest = sha256(repr(self.name).encode())
        for split in SPLITS:
            digest.update(f"\n{split}".encode())
            for item in getattr(self, split):
                digest.update(f"\n{content(item)}".encode())
        return digest.hexdigest()[:16]


def partition(
    pools: Mapping[str, Pool],
    setup: str,
    clients: int,
    *,
    seed: int,
    train_size: int,
    held_out_size: int,
    test_size: int,
    alpha: float = 0.5,
) -> list[ClientData]:
    """Deal the questions of `pools` (task -> Pool) to `clients` clients. The sizes are per client.

    A client's held-out and test sets have the same mix of tasks as its training set. Repeats are dropped first, see
    `drop_repeats`. Raises ConfigError for a setup that does not exist or is impossible (fewer clients than tasks in
    `distinct`), DataError where there are too few questions.
    """
    pools, _ = drop_repeats(pools)
    tasks = list(pools)
    n_train = np.array([len(pools[task].train) for task in tasks])  # (T,)
    train = _train_counts(setup, clients, n_train, seed=seed, size=train_size, alpha=alpha)  # (N, T)
    held_out = np.stack([_proportional(row, held_out_size) for row in train])
    test = np.stack([_proportional(row, test_size) for row in train])

    for t, task in enumerate(tasks):
        has_dev = bool(pools[task].dev)
        out_of_train = train if has_dev else train + held_out
        _check_enough(task, "training", len(pools[task].train), int(out_of_train[:, t].sum()), clients)
        if has_dev:
            _check_enough(task, "held-out", len(pools[task].dev), int(held_out[:, t].sum()), clients)
        _check_enough(task, "test", len(pools[task].test), int(test[:, t].sum()), clients)
    names = [_name(k, tasks[k % len(tasks)] if setup == "distinct" else "") for k in range(clients)]
    dealt = _dealt(pools, setup, names, seed, train, held_out, test)
    check_disjoint(dealt)
    return dealt


def own_partition(
    k: int,
    pools: Mapping[str, Pool],
    folder: Path,
    *,
    seed: int,
    train_size: int,
    held_out_size: int,
    test_size: int,
) -> ClientData:
    """Client k's (from 0) own questions: the requested number, or all that it has, with its own shares of tasks.

    If it has fewer than train_size + held_out_size training questions, the share held_out_size / (train_size +
    held_out_size) is held out, rounded down but at least one, and the rest is for training. Tasks with a `dev` hold out
    from that. Raises DataError, which names `folder`, for a client without a question to train on, hold out or test.

    It cannot know whether another client has the same questions: see `check_disjoint`.
    """
    pools, _ = drop_repeats(pools)
    splits = ("train", "dev", "test")
    there = {split: np.array([len(getattr(pool, split)) for pool in pools.values()]) for split in splits}  # (T,) each
    counts = [np.zeros(len(pools), dtype=int)] * 3
    if there["train"].any():
        counts = _own_counts(**there, train_size=train_size, held_out_size=held_out_size, test_size=test_size)
    if not all(part.any() for part in counts):
        n, m = there["train"].sum(), there["test"].sum()
        raise DataError(
            f"client{k + 1} needs at least two training questions, one of them to hold out, and one test question: of "
            f"{' and '.join(pools)} {folder} has {n} and {m} without repeats. Add some, or ask for other clients."
        )
    (own,) = _dealt(pools, "iid", [_name(0)], seed, *(part[None] for part in counts))
    return replace(own, name=_name(k, next(iter(pools)) if len(pools) == 1 else ""))


def _dealt(
    pools: Mapping[str, Pool],
    setup: str,
    names: Sequence[str],
    seed: int,
    train: np.ndarray,
    held_out: np.ndarray,
    test: np.ndarray,
) -> list[ClientData]:
    """The clients, from the number of questions (N, T) that each has of each task. There must be enough."""
    hands = [{split: [] for split in SPLITS} for _ in names]
    for t, task in enumerate(pools):
        from_train = iter(_shuffled(pools[task].train, seed, setup, task, "train"))
        from_test = iter(_shuffled(pools[task].test, seed, setup, task, "test"))
        has_dev = bool(pools[task].dev)
        from_dev = iter(_shuffled(pools[task].dev, seed, setup, task, "dev")) if has_dev else from_train
        # All training sets come before the first held-out one: held_out_size then does not change the training sets.
        for split, counts, deck in (
            ("train", train, from_train),
            ("held_out", held_out, from_dev),
            ("test", test, from_test),
        ):
            for hand, count in zip(hands, counts[:, t], strict=True):
                hand[split] += [next(deck) for _ in range(count)]

    return [
        ClientData(name, *(tuple(_shuffled(hand[split], seed, setup, name, split)) for split in SPLITS))
        for name, hand in zip(names, hands, strict=True)
    ]


def _name(k: int, task: str = "") -> str:
    return f"client{k + 1}-{task}" if task else f"client{k + 1}"


def drop_repeats(pools: Mapping[str, Pool]) -> tuple[dict[str, Pool], dict[str, dict[str, int]]]:
    """The pools without repeated questions, and how many were dropped: `{task: {"train": n, "test": n}}`.

    A question (by its uid) that is in any test or dev set is dropped from every training set, and one of a test set
    from every dev set. Of other repeats the first stays. Repeats across tasks count as well.
    """
    seen: set[str] = set()
    test = {task: _first_seen(pool.test, seen) for task, pool in pools.items()}
    dev = {task: _first_seen(pool.dev, seen) for task, pool in pools.items()}
    train = {task: _first_seen(pool.train, seen) for task, pool in pools.items()}
    kept = {task: Pool(train[task], test[task], dev[task]) for task in pools}
    dropped = {
        task: {"train": len(pool.train) - len(train[task]), "test": len(pool.test) - len(test[task])}
        for task, pool in pools.items()
    }
    return kept, dropped


def check_disjoint(clients: Sequence[ClientData]) -> None:
    """Raises DataError for the first question that is in two clients, or twice in one. It names both places."""
    first: dict[str, str] = {}
    for client in clients:
        for split in SPLITS:
            for question in getattr(client, split):
                place = f"the {split} set of {client.name}"
                if question.uid in first:
                    raise DataError(
                        f"Question {question.uid} of {question.task} is in {first[question.uid]} and again in {place}: "
                        f"take {shorten(_asks(question), 60)!r} out of one of them."
                    )
                first[question.uid] = place


def classes_of(client: ClientData) -> dict[str, list[str]]:
    """The possible answers of each task, where they come from the client's own files and may differ between clients.

    These are names of classes, in the order of their numbers, or choices that are a file's answers.
    """
    found = {}
    for item in (item for split in SPLITS for item in getattr(client, split)):
        if isinstance(item, Labelled):
            found[item.task] = list(item.names) if item.classes else ["scores"]
        elif isinstance(item, Exchange):
            found[item.task] = ["free text"]
        elif item.of_file:
            found[item.task] = list(item.choices)
    return found


def _asks(item: Item) -> str:
    return item.text_a if isinstance(item, Labelled) else item.question


def label_table(clients: Sequence[ClientData]) -> "pd.DataFrame":
    """Numbers of questions: one row per (split, client), one column per task; `.loc["train"]` is clients x tasks."""
    import pandas as pd  # takes 70 MB of every process that imports it

    rows = {
        (split, client.name): Counter(question.task for question in getattr(client, split))
        for split in SPLITS
        for client in clients
    }
    tasks = sorted({task for counts in rows.values() for task in counts})
    index = pd.MultiIndex.from_tuples(list(rows), names=["split", "client"])
    return pd.DataFrame([[counts[task] for task in tasks] for counts in rows.values()], index=index, columns=tasks)


# ---- counts -----------------------------------------------------------------------------------------------------


def _train_counts(
    setup: str, clients: int, n_train: np.ndarray, *, seed: int, size: int, alpha: float
) -> np.ndarray:  # (N, T), rows sum to size
    n_tasks = len(n_train)
    if setup == "distinct":
        if clients < n_tasks:
            raise ConfigError(
                f'setup="distinct" gives each client one task: {n_tasks} tasks need {n_tasks} clients or more, '
                f"got {clients}."
            )
        return size * np.eye(n_tasks, dtype=int)[np.arange(clients) % n_tasks]
    if setup in ("mixed", "iid"):
        _check_enough("all tasks", "training", int(n_train.sum()), clients * size, clients)
    if setup == "mixed":
        tasks = _rng(seed, setup, "union").permutation(np.repeat(np.arange(n_tasks), n_train))
        return np.stack([np.bincount(part, minlength=n_tasks) for part in tasks[: clients * size].reshape(clients, -1)])
    if setup == "iid":
        return np.tile(_proportional(n_train, size), (clients, 1))
    if setup == "dirichlet":
        shares = [_rng(seed, setup, f"client{k}").dirichlet([alpha] * n_tasks) for k in range(clients)]
        return np.stack([_proportional(share, size) for share in shares])
    raise ConfigError(f"setup must be one of {', '.join(SETUPS)}, got {setup!r}.")


def _proportional(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to `total` and follow `weights`, by largest remainder; both of shape (T,)."""
    quotas = total * weights / weights.sum()
    counts = np.floor(quotas).astype(int)
    order = np.argsort(counts - quotas, kind="stable")  # largest remainder first
    counts[order[: total - counts.sum()]] += 1
    return counts


def _own_counts(
    train: np.ndarray, dev: np.ndarray, test: np.ndarray, *, train_size: int, held_out_size: int, test_size: int
) -> list[np.ndarray]:
    """How many of its questions of each task (T,) one client trains on, holds out and is tested with."""
    trained = _proportional(train, train_size)
    held_out = _proportional(trained, held_out_size)
    has_dev = dev > 0
    alone = ~has_dev  # training and held-out questions come from one set
    asked, there, kept = (int(n[alone].sum()) for n in (trained + held_out, train, held_out))
    if asked > there > 0:
        kept = min(max(there * kept // asked, min(kept, 1)), there - 1)
        trained[alone] = _proportional(train[alone], there - kept)
        held_out[alone] = train[alone] - trained[alone]
    trained = np.minimum(trained, train)
    held_out = _up_to(np.where(has_dev, dev, train - trained), held_out)
    return [trained, held_out, _up_to(test, _proportional(trained, test_size))]


def _up_to(have: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The requested number of each task (T,), or all it has. Other tasks replace the missing questions."""
    counts = np.minimum(asked, have)
    room = have - counts
    missing = min(asked.sum() - counts.sum(), room.sum())
    return counts + _proportional(room, missing) if missing else counts


def _check_enough(task: str, split: str, have: int, need: int, clients: int) -> None:
    if need > have:
        raise DataError(
            f"{clients} clients need {need} {split} questions of {task}, but there are {have} without repeats: "
            "ask for fewer clients or smaller sizes."
        )


# ---- draws ------------------------------------------------------------------------------------------------------


def _rng(seed: int, *purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "partition", *purpose))


def _shuffled(questions: Sequence[Item], seed: int, *purpose: str) -> list[Item]:
    return [questions[i] for i in _rng(seed, *purpose).permutation(len(questions))]


def _first_seen(questions: Sequence[Item], seen: set[str]) -> tuple[Item, ...]:
    """The questions whose uid is not yet in `seen`. Adds their uids to it."""
    fresh = []
    for question in questions:
        if question.uid not in seen:
            seen.add(question.uid)
            fresh.append(question)
    return tuple(fresh)


def data_fingerprint(questions: list[ClientData]) -> str:
    """A hash of all clients' items, made from one hash per client, so the items themselves need not be together."""
    return joint_fingerprint(client.fingerprint for client in questions)


def joint_fingerprint(clients: Iterable[str]) -> str:
    return sha256(" ".join(clients).encode()).hexdigest()[:16]
