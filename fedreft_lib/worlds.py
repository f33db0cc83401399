"""What is the same for every run that differs only in method, mixing or schedule: the model and everybody's data.

Such runs share one `World`: the backbone is loaded once, the questions are encoded once, and the hidden states below
the first site are computed once.
"""

import functools
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, fields
from typing import Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .backbone import Backbone, load_backbone
from .batches import Batch, Sequence, encode
from .config import RunConfig
from .errors import DataError
from .interventions import INTERVENTIONS
from .partition import ClientData, Pool, check_disjoint, partition
from .sites import Sites, parse_layers, parse_positions
from .steering import SteeredModel
from .tasks import Question, load_questions, render

# Cached hidden states beyond this many bytes are not kept: the whole model runs instead.
CACHE_LIMIT = 2 * 2**30


@dataclass(frozen=True)
class Answers:
    """Prompts with their right answers, to train on or to take a loss of. Each field has an entry a question."""

    sequences: list[Sequence]
    hidden: list[Tensor] | None

    def __len__(self) -> int:
        return len(self.sequences)

    def batch(self, model: SteeredModel, indices: Many[int]) -> Batch:
        hidden = None if self.hidden is None else [self.hidden[i] for i in indices]
        return model.batch([self.sequences[i] for i in indices], hidden=hidden)

    def subset(self, indices: Many[int]) -> Self:
        """The questions at `indices`, with what is cached of them."""
        lists = {each.name: getattr(self, each.name) for each in fields(self)}
        return type(self)(**{name: None if of is None else [of[i] for i in indices] for name, of in lists.items()})

    @classmethod
    def join(cls, parts: Many[Self]) -> Self:
        """The questions of several clients as one."""
        lists = {each.name: [getattr(part, each.name) for part in parts] for each in fields(cls)}
        return cls(**{name: None if None in of else [x for part in of for x in part] for name, of in lists.items()})


@dataclass(frozen=True)
class Options(Answers):
    """Test questions: a sequence each, with all options on top of the prompt, or with none for generation."""

    characters: list[Tensor]  # lengths of the options' texts
    gold: list[int]
    tasks: list[str]
    labels: list[tuple[str, ...]]  # the words a generation may answer with


@dataclass(frozen=True)
class Client:
    """One client's data, as the model reads it."""

    name: str
    train: Answers
    held_out: Answers
    test: Options


@dataclass(frozen=True)
class World:
    """The model, the clients, the union of all clients' tests (a sample of it), and the questions themselves."""

    model: SteeredModel
    clients: list[Client]
    union: Options | None
    questions: list[ClientData]
    # Results of pure functions of this world that several of its runs ask for; see federation.py.
    memo: dict = field(default_factory=dict, repr=False, compare=False)


WORLD_FIELDS = (
    "backbone", "dtype", "device", "intervention", "rank", "layers", "positions", "tied",
    "benchmark", "tasks", "source", "data_dir", "prompt_format", "scoring", "max_length",
    "setup", "alpha", "clients", "train_size", "held_out_size", "test_size", "union_size", "seed",
)  # fmt: skip


def open_world(config: RunConfig) -> World:
    """The world of a config; the last two are remembered, so runs that share one do not build it again."""
    # These two are valid with every number of clients and every intervention; the world does not depend on it.
    return _build(RunConfig(method="local", init="random", **{name: getattr(config, name) for name in WORLD_FIELDS}))


@functools.lru_cache(maxsize=2)
def _build(config: RunConfig) -> World:
    questions = partition_of(config)
    backbone = shared_backbone(config.backbone, config.dtype, config.device)
    if backbone.kind != "causal":
        raise DataError(f"commonsense questions need a causal language model, {config.backbone} is an {backbone.kind}")
    prefix, suffix = parse_positions(config.positions)
    sites = Sites(parse_layers(config.layers, backbone.n_layers), prefix, suffix, config.tied)
    model = SteeredModel(backbone, INTERVENTIONS[config.intervention], sites, config.rank)

    reader = _Reader(model, config)
    clients = [
        Client(client.name, reader.answers(client.train), reader.answers(client.held_out), reader.options(client.test))
        for client in tqdm(questions, desc="reading questions", unit="client", leave=False)
    ]
    everyone = Options.join([client.test for client in clients])
    asked = min(config.union_size, len(everyone))
    chosen = [i * len(everyone) // asked for i in range(asked)]
    return World(model, clients, everyone.subset(chosen) if chosen else None, questions)


def partition_of(config: RunConfig) -> list[ClientData]:
    """Every client's questions, checked to share none. Loads no model."""
    read = functools.partial(load_questions, source=config.source, data_dir=config.data_dir, seed=config.seed)
    pools = {task: Pool(tuple(read(task, "train")), tuple(read(task, "test"))) for task in config.tasks}
    questions = partition(
        pools, config.setup, config.clients, seed=config.seed, alpha=config.alpha,
        train_size=config.train_size, held_out_size=config.held_out_size, test_size=config.test_size,
    )  # fmt: skip
    check_disjoint(questions)
    return questions


@functools.lru_cache(maxsize=1)
def shared_backbone(name: str, dtype: str, device: str) -> Backbone:
    """`load_backbone`, remembered: all worlds of a process share the model."""
    return load_backbone(name, dtype=dtype, device=device)


class _Reader:
    """Questions to encoded sequences, with cached hidden states as long as they fit into memory."""

    def __init__(self, model: SteeredModel, config: RunConfig):
        self.model, self.config = model, config
        self.left = CACHE_LIMIT if model.can_start_in_the_middle else 0  # bytes

    def answers(self, questions: Many[Question]) -> Answers:
        examples = [render(question, self.config.prompt_format) for question in questions]
        sequences = [self._encode(example.prompt, [example.options[example.gold]]) for example in examples]
        return Answers(sequences, self._hidden(sequences))

    def options(self, questions: Many[Question]) -> Options:
        examples = [render(question, self.config.prompt_format) for question in questions]
        if self.config.scoring == "generation":  # the model reads the prompts alone, from their first token on
            sequences, hidden = [self._encode(example.prompt, []) for example in examples], None
            labels = [tuple(text.split()[-1] for text in example.options) for example in examples]
        else:
            labels = [()] * len(examples)
            sequences = [self._encode(example.prompt, example.options) for example in examples]
            hidden = self._hidden(sequences)
        return Options(
            sequences,
            hidden,
            characters=[torch.tensor([len(text.strip()) for text in example.options]) for example in examples],
            gold=[example.gold for example in examples],
            tasks=[example.task for example in examples],
            labels=labels,
        )

    def _encode(self, prompt: str, answers: Many[str]) -> Sequence:
        # A model that is to generate has to learn where an answer ends; options that are only compared do not.
        end = self.config.prompt_format == "llm_adapters"
        return encode(self.model.backbone.tokenizer, prompt, answers, max_length=self.config.max_length, end=end)

    def _hidden(self, sequences: list[Sequence]) -> list[Tensor] | None:
        backbone = self.model.backbone
        size = sum(len(s.ids) for s in sequences) * backbone.hidden_size * backbone.dtype.itemsize
        if size > self.left:
            return None
        self.left -= size
        return self.model.hidden_below(sequences)
