"""What runs that differ only in method, adapter or schedule have in common: the model and everybody's data.

The backbone is loaded once, the items are encoded once, and the hidden states that no client's state can change are
computed once (see hidden_cache); all such runs read them.
"""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from . import cuts
from .adapters import Adapter, AtSites, InLinears
from .architectures import ARCHITECTURES, kind_of, memory_estimate, skeleton
from .backbone import Backbone, choose_device, choose_dtype, find_layers, load_backbone
from .config import RunConfig
from .cuts import Cuts
from .encoded import Answers, Labels, Options, Texts
from .engine import rows_in_a_pass
from .errors import ConfigError, DataError, FedReFTError, NoFileError
from .file_hashes import hash_or_none
from .generation import left_out
from .heads import Head
from .hidden_cache import keeps
from .hostile import with_flipped_labels
from .identity import UNKNOWN, backbone_identity
from .interventions import INTERVENTIONS
from .lora import LoRA
from .partition import ClientData, Pool, brought, check_disjoint, partition
from .reader import Reader
from .sites import Sites, parse_layers, parse_positions
from .steering import SteeredModel
from .strategies import STRATEGIES
from .tasks import FAMILIES, Item
from .tasks.row_files import noting
from .ways import setting

REMEMBERED = 8  # partitions
_remembered: dict[tuple[RunConfig, int | None], tuple[dict[Path, str | None], list[ClientData]]] = {}
_shared: dict[tuple[str, str, str], Backbone] = {}  # the last one
loaded: list[str] = []  # the backbones that this process has loaded, in turn
KINDS = {"causal": "a causal language model", "encoder": "an encoder"}


@dataclass(frozen=True)
class Client:
    """One client's data, as the model reads it."""

    name: str
    train: Answers | Labels
    held_out: Answers | Labels
    test: tuple[Options | Texts | Labels, ...]  # one for each kind of item that is in the test

    @property
    def cut(self) -> Cuts:
        """How many texts of each split did not fit into max_length; nothing where all did."""
        return cuts.counted({"train": [self.train], "held_out": [self.held_out], "test": self.test})


@dataclass(frozen=True)
class Deal:
    """Who has which items: two are equal where all items are, whatever files they came from."""

    fingerprints: tuple[str, ...]
    clients: tuple[ClientData, ...] = field(repr=False, compare=False)

    @classmethod
    def of(cls, clients: Many[ClientData]) -> "Deal":
        return cls(tuple(client.fingerprint for client in clients), tuple(clients))


@dataclass(frozen=True)
class World:
    """The model, the clients, the union of all clients' tests (a sample of it), and the items themselves."""

    model: SteeredModel
    clients: list[Client]
    union: tuple[Options | Texts | Labels, ...]
    questions: list[ClientData]
    longest: int  # tokens of the longest text of these clients, with what may be written after it
    writes: bool  # whether anything is written
    memo: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def cut(self) -> dict[str, Cuts]:
        """`Client.cut` of those clients that have any."""
        return {client.name: client.cut for client in self.clients if client.cut}

    def remembered(self, key: tuple, compute: Callable[[], Any]) -> Any:
        """The result of a pure function of this world that several of its runs ask for."""
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]


# What the data of a world depends on; its adapter depends on the intervention and the method besides.
WORLD_FIELDS = (
    "backbone", "dtype", "device", "benchmark", "tasks", "source", "data_dir", "prompt_format", "scoring",
    "max_length", "max_new_tokens", "setup", "alpha", "clients", "train_size", "held_out_size", "test_size",
    "union_size", "seed",
)  # fmt: skip


def open_world(config: RunConfig, only: int | None = None, outputs: int = 0) -> World:
    """The world of a config. Data and cached states are remembered for the last two, so runs share them.

    only: the one client (from 0) whose questions are read, on a machine that is that client's; the others have none
    here. outputs: of a head that is to serve clients with more classes than are known here.
    """
    if config.backbone in ARCHITECTURES:
        _announce(config.backbone, config.dtype, config.device, needs(config))
    backbone = shared_backbone(config.backbone, config.dtype, config.device)
    adapter = adapter_of(config, backbone)
    data = _data(config)
    below = adapter.below if keeps(SteeredModel(backbone, adapter), config) else None
    world = _build(data, backbone, below, Deal.of(partition_of(data, only)), outputs)
    head = world.model.head
    return replace(world, model=SteeredModel(backbone, adapter, head))


def _data(config: RunConfig) -> RunConfig:
    """Of a config what a world depends on besides the adapter: two with the same share what is remembered."""
    same = {name: getattr(config, name) for name in WORLD_FIELDS}
    if config.attack == "label_flip":  # the one attack that changes what is read
        same |= {"attack": config.attack, "hostile": config.hostile}
    return RunConfig(method="local", **same)  # local is valid with every number of clients


def adapter_of(config: RunConfig, backbone: Backbone) -> Adapter:
    """What a client trains, in the form that the method needs. Raises ConfigError for places that are not there."""
    layers = parse_layers(config.layers, backbone.n_layers)
    strategy = STRATEGIES[config.method]
    if config.intervention == "lora":
        kind = strategy.form(LoRA(config.lora_alpha / config.rank), config)
        return InLinears.of(backbone, kind, layers, config.rank, config.targets)
    prefix, suffix = parse_positions(config.positions)
    if config.rank > backbone.hidden_size:
        raise ConfigError(f"rank must be at most {backbone.hidden_size}, the width of {config.backbone}")
    kind = strategy.form(INTERVENTIONS[config.intervention], config)
    return AtSites(kind, Sites(layers, prefix, suffix, config.tied), config.rank, backbone.hidden_size)


def planned(config: RunConfig, classes: int = 2) -> SteeredModel:
    """The model of a run on a hub backbone, from what is known of its architecture: no weights, for counting."""
    model = skeleton(config.backbone)
    bare = Backbone(config.backbone, model, None, kind_of(model.config), find_layers(model), "")
    head = Head(bare.hidden_size, classes) if FAMILIES[config.benchmark].backbone == "encoder" else None
    return SteeredModel(bare, adapter_of(config, bare), head)


def needs(config: RunConfig) -> str:
    """How much memory a run on a hub backbone takes, as a sentence; an upper bound, before anything is loaded."""
    device = choose_device(config.device)
    model, dtype = planned(config), choose_dtype(config.dtype, device)
    tokens = min(rows_in_a_pass(config, device), config.clients * config.batch_size) * config.max_length
    return str(
        memory_estimate(model.backbone.model, dtype, trainable=model.spec.size, clients=config.clients, tokens=tokens)
    )


@functools.cache  # once for a backbone and its needs, not for each run
def _announce(backbone: str, dtype: str, device: str, needed: str) -> None:
    tqdm.write(f"{backbone} ({dtype}, {device}) needs {needed}")


@functools.lru_cache(maxsize=2)
def _build(config: RunConfig, backbone: Backbone, below: int | None, deal: Deal, outputs: int) -> World:
    """The world with any adapter that leaves the blocks up to `below` alone."""
    family = FAMILIES[config.benchmark]
    if backbone.kind != family.backbone:
        needed, found = KINDS[family.backbone], KINDS[backbone.kind]
        raise DataError(f"{config.benchmark} needs {needed}, and {config.backbone} is {found}")
    questions = list(deal.clients)
    items = [item for client in questions for part in (client.train, client.held_out, client.test) for item in part]
    head = None
    if family.backbone == "encoder":
        head = Head(backbone.hidden_size, max(*(item.classes for item in items), outputs, 1))
    sites = Sites((below or 0,), 1, 0)
    model = SteeredModel(backbone, AtSites(INTERVENTIONS["loreft"], sites, 1, backbone.hidden_size), head)

    reader = Reader(model, config, caches=below is not None)
    clients = [
        Client(client.name, reader.training(client.train), reader.training(client.held_out), reader.tests(client.test))
        for client in tqdm(questions, desc="reading questions", unit="client", leave=False)
    ]
    union = _union([client.test for client in clients], config.union_size)
    longest = _longest(clients, config)
    if backbone.most_tokens is not None and longest > backbone.most_tokens:
        raise ConfigError(
            f"{backbone.name} has positions for {backbone.most_tokens} tokens, and here are texts of {longest}, with "
            "what may be generated after them: give a smaller max_length or max_new_tokens"
        )
    made_for = setting(backbone.model.config, "max_position_embeddings") or longest
    if longest > made_for:  # rotary positions go on
        tqdm.write(f"{backbone.name} was made for texts of {made_for} tokens, and reads some of up to {longest} here")
    writes = bool(_starts(clients, config))
    ways = model.ways(longest, writes=writes)  # tried before any training
    if str(ways) != "fast":
        tqdm.write(f"{backbone.name} is read in a slower way, which is right: {ways}")
    if writes and (ignored := left_out(backbone.model)):
        tqdm.write(f"{backbone.name} asks for {ignored} in its generation config: texts are plain greedy ones, without")
    world = World(model, clients, union, questions, longest, writes)
    if said := cuts.in_words(world.cut):
        tqdm.write(f"Not all texts fit into max_length={config.max_length}: {said}")
    return world


def _longest(clients: list[Client], config: RunConfig) -> int:
    """Tokens of the longest text that is read, or of the longest prompt with all that may be generated after it."""
    parts = [part for client in clients for part in (client.train, client.held_out, *client.test)]
    read = [sequence.reach for part in parts for sequence in part.sequences]
    starts = [prompt for part in _starts(clients, config) for prompt in part.prompts]
    return max([1, *read, *(prompt.prompt_length + config.max_new_tokens for prompt in starts)])


def _starts(clients: list[Client], config: RunConfig) -> list[Options | Texts]:
    """The parts of tests that the model writes an answer to."""
    kinds = (Options, Texts) if config.scoring == "generation" else (Texts,)
    return [part for client in clients for part in client.test if isinstance(part, kinds)]


def _union(tests: Many[tuple], size: int) -> tuple:
    """`size` items of all tests together, evenly picked, those of each kind as one; all where there are fewer."""
    parts = [part for test in tests for part in test]
    kinds = list(dict.fromkeys(type(part) for part in parts))
    joined = [kind.join([part for part in parts if type(part) is kind]) for kind in kinds]
    total = sum(map(len, joined))
    asked, chosen, first = min(size, total), [], 0
    places = [i * total // asked for i in range(asked)]
    for part in joined:
        own = [place - first for place in places if first <= place < first + len(part)]
        first += len(part)
        if own:
            chosen.append(part.subset(own))
    return tuple(chosen)


def partition_of(config: RunConfig, only: int | None = None) -> list[ClientData]:
    """Every client's items, checked to share none; none of the others' where `only` is one client. Loads no model.

    With setup="own" client 3's are those of the tasks that have files in `data_dir`/client3, up to the sizes. The last
    few are remembered as long as the files that were looked for hold what they held.
    """
    key = _data(config), only
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
            questions[k] = brought(k, _own_pools(config, k), _own_folder(config, k), **sizes)
    else:
        load = _loader(config, config.data_dir)
        pools = {task: _pool(load, task, load(task, "train")) for task in config.tasks}
        questions = partition(pools, config.setup, config.clients, alpha=config.alpha, **sizes)
    check_disjoint(questions)
    questions = with_flipped_labels(questions, config)
    if only is None or config.union_size:  # the union is of everybody's tests
        return questions
    return [*nothing[:only], questions[only], *nothing[only + 1 :]]


def _own_pools(config: RunConfig, k: int) -> dict[str, Pool]:
    """Those of the config's tasks that client k (from 0) has training files of."""
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


def shared_backbone(name: str, dtype: str, device: str) -> Backbone:
    """`load_backbone`, remembered as long as its files hold what they held: all worlds of a process share the model.

    Raises FedReFTError for files that change while they are loaded.
    """
    key, before = (name, dtype, device), backbone_identity(name)
    if key not in _shared or _shared[key].identity != before:
        _shared.clear()
        backbone = load_backbone(name, dtype=dtype, device=device)
        loaded.append(name)
        identity = backbone_identity(name)
        if identity != before and not before.startswith(UNKNOWN):  # the hub may have sent another commit
            raise FedReFTError(f"The files of {name} changed while they were loaded; try again when they are whole.")
        _shared[key] = replace(backbone, identity=identity)
    return _shared[key]
