"""Which client has which items: a config's questions, dealt to its clients or read from each client's own folder."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import RunConfig
from ..data import FAMILIES, Item, agreement
from ..data.agreement import Text
from ..data.file_hashes import hash_or_none
from ..data.own_files.row_files import noting
from ..data.partition import ClientData, Pool, check_disjoint, drop_repeats, own_partition, partition
from ..errors import DataError, NoFileError
from ..model.identity import backbone_identity
from .attacks import with_flipped_labels
from .labelling import labelled, seen

REMEMBERED = 8  # partitions
_remembered: dict[tuple[RunConfig, int | None, str], tuple[dict[Path, str | None], list[ClientData]]] = {}


@dataclass(frozen=True)
class Deal:
    """The items of all clients. Two deals are equal if all items are equal, from whatever files they came."""

    fingerprints: tuple[str, ...]
    clients: tuple[ClientData, ...] = field(repr=False, compare=False)

    @classmethod
    def of(cls, clients: Sequence[ClientData]) -> "Deal":
        return cls(tuple(client.fingerprint for client in clients), tuple(clients))


def counted(config: RunConfig) -> tuple[float, float]:
    """Counted on the texts of benchmark="agreement", in percent: labels on which two clients agree, and the accuracy of
    the best single rule for all. `data.agreement` has the formulas."""
    e, w = seen(texts_of(config), config), agreement.rules(config.clients, config.agreement, config.seed)
    y = agreement.labels(e, w)
    return 100 * agreement.share_agreed(y), agreement.shared_accuracy(y, e, w)


def data_of(config: RunConfig) -> RunConfig:
    """The part of a config that a federation depends on, without the adapter. Configs with equal parts share caches."""
    same = config.parameters_of("data")
    if config.attack == "label_flip":  # the only attack that changes the data
        same |= {"attack": config.attack, "hostile": config.hostile}
    return RunConfig(method="local", **same)  # local is valid with every number of clients


def partition_of(config: RunConfig, only: int | None = None) -> list[ClientData]:
    """The items of every client, or of client `only` (from 0) and no other. Loads a model for "agreement" alone.

    With setup="own" client 3 has the items of the tasks with files in `data_dir`/client3, up to the sizes. The last few
    results are remembered as long as no file changes. Raises DataError where two clients share an item, or where there
    are too few.
    """
    # The labels of "agreement" are made by the model, whose files may change under one name.
    made_by = backbone_identity(config.backbone) if config.benchmark == "agreement" else ""
    key = data_of(config), only, made_by
    files, clients = _remembered.pop(key, (None, None))
    if files is None or any(hash_or_none(path) != known for path, known in files.items()):
        with noting() as files:
            clients = _partition(config, only)
    _remembered[key] = files, clients
    for oldest in list(_remembered)[:-REMEMBERED]:
        _remembered.pop(oldest, None)
    return list(clients)


def _partition(config: RunConfig, only: int | None) -> list[ClientData]:
    sizes = {name: getattr(config, name) for name in ("seed", "train_size", "held_out_size", "test_size")}
    nothing = [ClientData(f"client{k + 1}", (), (), ()) for k in range(config.clients)]
    if config.setup == "own":
        questions = list(nothing)
        for k in range(config.clients) if only is None else (only,):
            questions[k] = own_partition(k, _own_pools(config, k), _own_folder(config, k), **sizes)
    else:
        pools = _pools(config)
        questions = partition(pools, config.setup, config.clients, alpha=config.alpha, **sizes)
        if config.benchmark == "agreement":
            questions = labelled(questions, _texts(pools), config)
    check_disjoint(questions)
    questions = with_flipped_labels(questions, config)
    if only is None or config.union_size:  # the union needs the tests of all clients
        return questions
    return [*nothing[:only], questions[only], *nothing[only + 1 :]]


def texts_of(config: RunConfig) -> list[Text]:
    """benchmark="agreement": all texts that could be dealt, without labels; the same for every size and,
    except for synthetic ones, for every seed.
    """
    return _texts(_pools(config))


def _texts(pools: dict[str, Pool]) -> list[Text]:
    kept, _ = drop_repeats(pools)
    return [text for pool in kept.values() for text in (*pool.train, *pool.test)]


def _pools(config: RunConfig) -> dict[str, Pool]:
    load = _loader(config, config.data_dir)
    return {task: _pool(load, task, load(task, "train")) for task in config.tasks}


def _own_pools(config: RunConfig, k: int) -> dict[str, Pool]:
    """The items of client k (from 0), for those of the config's tasks that it has training files of."""
    folder = _own_folder(config, k)
    load, train = _loader(config, folder), {}
    for task in config.tasks:
        with contextlib.suppress(NoFileError):
            train[task] = load(task, "train")
    if not train:
        raise DataError(f"There is no train file of {' or '.join(config.tasks)} in {folder}.")
    return {task: _pool(load, task, items) for task, items in train.items()}


def _own_folder(config: RunConfig, k: int) -> Path:
    return Path(str(config.data_dir)) / f"client{k + 1}"


def _loader(config: RunConfig, folder: str | Path | None) -> Callable[[str, str], list[Item]]:
    return functools.partial(FAMILIES[config.benchmark].load, source=config.source, data_dir=folder, seed=config.seed)


def _pool(load: Callable[[str, str], list[Item]], task: str, train: list[Item]) -> Pool:
    return Pool(tuple(train), test=tuple(load(task, "test")), dev=tuple(load(task, "dev")))
