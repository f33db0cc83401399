"""The model and the data of all clients, which runs share if they differ only in method, adapter or schedule.

The backbone is loaded once, and the items are encoded once. The hidden states that no client's state can change are
also computed once (see model.fast.hidden_cache).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor
from tqdm.auto import tqdm

from ..config import RunConfig
from ..core.interventions import INTERVENTIONS
from ..core.notation import parse_layers, parse_positions
from ..core.sites import Sites
from ..core.state import Layout
from ..data import FAMILIES, cuts
from ..data.cuts import Cuts
from ..data.partition import ClientData
from ..errors import ConfigError, DataError
from ..methods import METHODS
from ..methods.lora import LoRA
from ..model.adapters import Adapter, AtSites, InLinears
from ..model.architectures import ARCHITECTURES, find_layers, kind_of, memory_estimate, skeleton
from ..model.backbone import Backbone, choose_device, choose_dtype
from ..model.device import one_thread
from ..model.encoding import ChoiceSet, Client, LabelSet, TextSet
from ..model.fast import last_token
from ..model.fast.hidden_cache import keeps
from ..model.fast.last_token import LastTokens
from ..model.generation import left_out
from ..model.heads import Head
from ..model.reader import Reader
from ..model.shared import shared_backbone
from ..model.steered import SteeredModel
from ..model.tokens import Tokens
from ..model.ways import setting
from .dealing import Deal, data_of, partition_of, texts_of
from .engine import rows_in_a_pass
from .pool import first_site, pool_of, read_as

BACKBONES = {"causal": "a causal language model", "encoder": "an encoder"}


_kept: WeakValueDictionary[tuple, LastTokens] = WeakValueDictionary()  # those of the federations that there are
_last: list[LastTokens] = []  # and the last ones, for the next federation


@dataclass(frozen=True)
class Federation:
    """The model, the clients, a sample of the union of all clients' tests, and the items themselves."""

    model: SteeredModel
    clients: list[Client]
    union: tuple[ChoiceSet | TextSet | LabelSet, ...]
    questions: list[ClientData]
    longest: int  # tokens of these clients' longest text, with what may be generated after it
    writes: bool  # whether the model generates text in tests
    pool: dict[Tokens, Tensor] = field(default_factory=dict, repr=False, compare=False)  # see `Reader`
    memo: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def cut(self) -> dict[str, Cuts]:
        """`Client.cut` of the clients that have any."""
        return {client.name: client.cut for client in self.clients if client.cut}

    def remembered(self, keys: Sequence[tuple], compute: Callable[[list[int]], list]) -> list:
        """The results for these keys, pure functions of this federation, stored for later runs.

        compute: those of the keys with these places, which are not known yet; it is called once.
        """
        new = [i for i, key in enumerate(keys) if key not in self.memo]
        self.memo.update(zip([keys[i] for i in new], compute(new) if new else [], strict=True))
        return [self.memo[key] for key in keys]


def assemble(config: RunConfig, only: int | None = None, outputs: int = 0) -> Federation:
    """The federation of a config. The data and cached hidden states of the last two are remembered, so runs share them.

    only: the client (from 0) of this machine; only its questions are read. outputs: the least number of a head's
    outputs, where other clients have more classes than are known here. Raises ConfigError or DataError where the config
    does not fit the backbone or the data.
    """
    with one_thread(config.device):
        return _assembled(config, only, outputs)


def _assembled(config: RunConfig, only: int | None, outputs: int) -> Federation:
    if config.backbone in ARCHITECTURES:
        _announce(config.backbone, config.dtype, config.device, needs(config))
    backbone = shared_backbone(config.backbone, config.dtype, config.device)
    adapter = adapter_of(config, backbone)
    data = data_of(config)
    below = adapter.below if keeps(SteeredModel(backbone, adapter), config) else None
    federation = _build(data, backbone, below, Deal.of(partition_of(data, only)), outputs)
    federation = replace(federation, model=model_of(config, backbone, adapter, federation.model.head))
    by_rule = config.objective == "choice" and not config.dropout and config.engine == "auto"
    return at_last_tokens(federation, config) if by_rule or config.engine == "last_token" else federation


def at_last_tokens(federation: Federation, config: RunConfig) -> Federation:
    """The same federation, whose questions are read at their prompts' last tokens alone where that is possible.

    Raises ConfigError where it is not and the config asks for it.
    """
    clients, scored = federation.clients, config.scoring == "likelihood"  # per character, a whole likelihood counts
    parts = [part for client in clients for part in (client.train, client.held_out) if len(part)]
    parts += [part for client in clients for part in client.test if scored]
    hidden = dict(federation.pool)
    for part in () if hidden else parts:
        hidden |= dict(zip(part.sequences, part.hidden or (), strict=bool(part.hidden)))
    if not all(part.hidden for part in parts) or not last_token.reads(federation.model, list(hidden)):
        if config.engine == "last_token":
            raise ConfigError(
                'engine="last_token" needs options of one token each, a decoder like LLaMA, layers above the first, '
                f"transformers 5, all clients in each round and room for hidden states; one of these is missing with "
                f"{config.backbone}, layers={config.layers!r} and sampled={config.sampled}"
            )
        return federation
    model = federation.model
    key = model.backbone, model.adapter.below, tuple(hidden)
    kept, number = _kept.get(key), {sequence: i for i, sequence in enumerate(hidden)}
    if kept is None:
        _last.clear()  # before others take their room
        kept = _kept[key] = LastTokens(model, list(hidden), list(hidden.values()))
    _last[:] = [kept]

    def read(part: Any) -> Any:
        return replace(part, last=[(kept, number[sequence]) for sequence in part.sequences])

    return replace(federation, clients=[
        replace(
            client, train=read(client.train), held_out=read(client.held_out),
            test=tuple(map(read, client.test)) if scored else client.test,
        )
        for client in clients
    ], union=tuple(map(read, federation.union)) if scored else federation.union)  # fmt: skip


def adapter_of(config: RunConfig, backbone: Backbone) -> Adapter:
    """What a client trains, as the method needs it. Raises ConfigError for layers or modules that do not exist."""
    layers = parse_layers(config.layers, backbone.n_layers)
    method = METHODS[config.method]
    if config.intervention == "lora":
        kind = method.state_kind(LoRA(config.lora_alpha / config.rank), config)
        return InLinears.of(backbone, kind, layers, config.rank, config.targets)
    prefix, suffix = parse_positions(config.positions)
    if config.rank > backbone.hidden_size:
        raise ConfigError(f"rank must be at most {backbone.hidden_size}, the width of {config.backbone}")
    kind = method.state_kind(INTERVENTIONS[config.intervention], config)
    return AtSites(kind, Sites(layers, prefix, suffix, config.tied), config.rank, backbone.hidden_size)


def model_of(config: RunConfig, backbone: Backbone, adapter: Adapter, head: Head | None) -> SteeredModel:
    """The model, whose states have the extras that the config's method needs."""
    return SteeredModel(backbone, adapter, head, METHODS[config.method].extras(Layout(adapter, head), config))


def planned(config: RunConfig, classes: int = 2) -> SteeredModel:
    """The model of a run on a hub backbone, without weights: built from its known architecture, to count parameters."""
    model = skeleton(config.backbone)
    bare = Backbone(config.backbone, model, None, kind_of(model.config), find_layers(model), "")
    head = Head(bare.hidden_size, classes) if FAMILIES[config.benchmark].backbone == "encoder" else None
    return model_of(config, bare, adapter_of(config, bare), head)


def needs(config: RunConfig) -> str:
    """An upper bound on the memory of a run on a hub backbone, as a sentence. It loads nothing."""
    device = choose_device(config.device)
    model, dtype = planned(config), choose_dtype(config.dtype, device)
    tokens = min(rows_in_a_pass(config, device), config.clients * config.batch_size) * config.max_length
    return str(
        memory_estimate(model.backbone.model, dtype, trainable=model.spec.size, clients=config.clients, tokens=tokens)
    )


@functools.cache  # once for each backbone and its needs, not for each run
def _announce(backbone: str, dtype: str, device: str, needed: str) -> None:
    tqdm.write(f"{backbone} ({dtype}, {device}) needs {needed}")


@functools.lru_cache(maxsize=2)
def _build(config: RunConfig, backbone: Backbone, below: int | None, deal: Deal, outputs: int) -> Federation:
    """The federation, for any adapter that does not change the blocks up to `below`."""
    family = FAMILIES[config.benchmark]
    if backbone.kind != family.backbone:
        needed, found = BACKBONES[family.backbone], BACKBONES[backbone.kind]
        raise DataError(f"{config.benchmark} needs {needed}, and {config.backbone} is {found}")
    questions = list(deal.clients)
    items = [item for client in questions for part in (client.train, client.held_out, client.test) for item in part]
    head = None
    if family.backbone == "encoder":
        head = Head(backbone.hidden_size, max(*(item.classes for item in items), outputs, 1))
    model, pool = first_site(backbone, below, head), None
    if config.benchmark == "agreement":
        pool = pool_of(backbone, below, read_as(config), tuple(texts_of(config)))
    reader = Reader(model, config, caches=below is not None, pool=pool)
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
    if longest > made_for:  # rotary positions allow it
        tqdm.write(f"{backbone.name} was made for texts of {made_for} tokens, and reads some of up to {longest} here")
    writes = bool(_starts(clients, config))
    ways = model.ways(longest, writes=writes)  # the trial comes before any training
    if str(ways) != "fast":
        tqdm.write(f"{backbone.name} is read in a slower way, which is right: {ways}")
    if writes and (ignored := left_out(backbone.model)):
        tqdm.write(f"{backbone.name} asks for {ignored} in its generation config: texts are plain greedy ones, without")
    federation = Federation(model, clients, union, questions, longest, writes, reader.pool.hidden)
    if text := cuts.in_words(federation.cut):
        tqdm.write(f"Not all texts fit into max_length={config.max_length}: {text}")
    return federation


def _longest(clients: list[Client], config: RunConfig) -> int:
    """Tokens of the longest text, or of the longest prompt together with all that may be generated after it."""
    parts = [part for client in clients for part in (client.train, client.held_out, *client.test)]
    read = [sequence.reach for part in parts for sequence in part.sequences]
    starts = [prompt for part in _starts(clients, config) for prompt in part.prompts]
    return max([1, *read, *(prompt.prompt_length + config.max_new_tokens for prompt in starts)])


def _starts(clients: list[Client], config: RunConfig) -> list[ChoiceSet | TextSet]:
    """The parts of tests for which the model generates an answer."""
    kinds = (ChoiceSet, TextSet) if config.scoring == "generation" else (TextSet,)
    return [part for client in clients for part in client.test if isinstance(part, kinds)]


def _union(tests: Sequence[tuple], size: int) -> tuple:
    """`size` items of all tests together, picked evenly, or all if there are fewer; one part for each kind of item."""
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
