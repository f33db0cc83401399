"""Hostile or broken clients: what they send in place of what they learned.

An attack looks like an update and tries to move the others. A bad update is one that no server should admit. Both
change the message of a client that trained as usual, except "label_flip", which trains on wrong answers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..data import Item, Labelled, Question
from ..data.partition import ClientData
from ..errors import ConfigError
from ..seeds import derive
from .admission import Update


def _random_direction(step: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(step.shape, generator=generator)
    return scale * step.norm() * (drawn / drawn.norm())


# Each takes the step (P,) that the client made, `scale`, and a generator: the client's, or the colluders' common one.
ATTACKS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "sign_flip": lambda step, scale, own: -scale * step,
    "noise": _random_direction,
    "collude": _random_direction,
}
BAD_UPDATES: dict[str, Callable[[State, float], tuple[State, float]]] = {
    "one_nan": lambda state, n: (_with_first(state, math.nan), n),
    "one_inf": lambda state, n: (_with_first(state, math.inf), n),
    "norm_1e30": lambda state, n: (_of_norm(state, 1e30), n),
    "wrong_shape": lambda state, n: (_first(state, lambda tensor: tensor.reshape(-1)[1:]), n),
    "broadcastable_shape": lambda state, n: (_first(state, lambda tensor: tensor[:1, ..., :1]), n),
    "integer_dtype": lambda state, n: (_first(state, lambda tensor: tensor.to(torch.int32)), n),
    "complex_dtype": lambda state, n: (_first(state, lambda tensor: tensor.to(torch.complex64)), n),
    "missing_key": lambda state, n: (dict(list(state.items())[1:]), n),
    "extra_key": lambda state, n: ({**state, "extra": torch.zeros(1)}, n),
    "negative_count": lambda state, n: (state, -n),
    "nan_count": lambda state, n: (state, math.nan),
    "huge_count": lambda state, n: (state, 1e12),
}


def is_hostile(config: RunConfig, k: int) -> bool:
    """Whether client k (from 0) is one of the last `hostile` clients."""
    return k >= config.clients - config.hostile


def sent_by(config: RunConfig, k: int, client: str, t: int, before: State, learned: State, examples: int) -> Update:
    """The update that client k (from 0) sends in round t."""
    honest = Update(client, learned, examples)
    if not is_hostile(config, k) or config.attack == "label_flip":
        return honest
    if config.attack in BAD_UPDATES:
        return Update(client, *BAD_UPDATES[config.attack](learned, examples))
    whose = () if config.attack == "collude" else (client,)
    generator = torch.Generator().manual_seed(derive(config.seed, "attack", t, *whose))
    change = ATTACKS[config.attack]
    step = torch.cat([(learned[name] - before[name]).flatten() for name in learned])
    moved = change(step, config.attack_scale, generator).split([tensor.numel() for tensor in learned.values()])
    state = {name: before[name] + part.view_as(before[name]) for name, part in zip(learned, moved, strict=True)}
    return replace(honest, state=state)


def with_flipped_labels(clients: Sequence[ClientData], config: RunConfig) -> list[ClientData]:
    """The clients; with attack="label_flip", the training items of the hostile ones have the next wrong answer.

    Raises ConfigError for items without choices or classes.
    """
    flips = config.attack == "label_flip"
    return [
        replace(client, train=tuple(map(_with_wrong_answer, client.train)))
        if flips and is_hostile(config, k)
        else client
        for k, client in enumerate(clients)
    ]


def _with_wrong_answer(item: Item) -> Item:
    if isinstance(item, Question):
        return replace(item, gold=(item.gold + 1) % len(item.choices))
    if isinstance(item, Labelled) and item.classes:
        return replace(item, label=(item.label + 1) % item.classes)
    raise ConfigError(f'attack="label_flip" needs choices or classes, and {item.task} has neither: use another attack')


def _first(state: State, change: Callable[[Tensor], Tensor]) -> State:
    name, tensor = next(iter(state.items()))
    return {**state, name: change(tensor)}


def _with_first(state: State, value: float) -> State:
    def corrupted(tensor: Tensor) -> Tensor:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        tensor.view(-1)[0] = value
        return tensor

    return _first(state, corrupted)


def _of_norm(state: State, norm: float) -> State:
    size = sum(tensor.numel() for tensor in state.values())
    return {name: torch.full_like(tensor, norm / math.sqrt(size)) for name, tensor in state.items()}
