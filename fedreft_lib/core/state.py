"""A client's state: named tensors <-> one row of the federation matrix X (N, P).

`Spec` maps columns to tensors. Aggregation works on X; training works on the named tensors of one row. `Layout`
describes a state without a model: its tensors, which of them stay orthonormal, and how it starts.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import FedReFTError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Spec:
    """Names and shapes of the tensors of one state, in column order."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]]) -> "Spec":
        return cls(tuple((name, tuple(shape)) for name, shape in shapes.items()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.shapes)

    def part(self, names: Collection[str]) -> "Spec":
        """The spec of some of the tensors, in the same order."""
        return Spec(tuple(each for each in self.shapes if each[0] in names))

    @property
    def size(self) -> int:
        """P, how many numbers the state of one client has."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def row(self, state: State) -> Tensor:
        """The state as one float32 vector (P,). Raises FedReFTError unless it has exactly the spec's tensors."""
        if set(state) != {name for name, _ in self.shapes}:
            raise FedReFTError(f"a state must have the tensors {[n for n, _ in self.shapes]}, got {list(state)}")
        for name, shape in self.shapes:
            if tuple(state[name].shape) != shape:
                raise FedReFTError(f"{name} must have the shape {shape}, got {tuple(state[name].shape)}")
        return torch.cat([state[name].detach().to("cpu", torch.float32).reshape(-1) for name, _ in self.shapes])

    def columns(self, names: Collection[str], X: Tensor) -> Tensor:
        """The columns of X (n, P) that hold some of the tensors, (n, Q)."""
        blocks = X.split([math.prod(shape) for _, shape in self.shapes], dim=1)
        return torch.cat([block for name, block in zip(self.names, blocks, strict=True) if name in names], dim=1)

    def named(self, row: Tensor) -> State:
        """The tensors of one row (P,), as views of it."""
        sizes = [math.prod(shape) for _, shape in self.shapes]
        parts = row.split(sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes, parts, strict=True)}


class Part(Protocol):
    """An adapter or a head, as a part of a state."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its tensors, in column order."""


class Adapter(Part, Protocol):
    """What a client trains: tensors of one kind and rank, at several places of a model."""

    kind: Any
    rank: int
    d: int  # width of the residual stream

    @property
    def rotated(self) -> tuple[str, ...]:
        """Names of the tensors whose rows stay orthonormal."""

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """The layer of each place of each tensor, by the tensor's name."""

    def start(self, init: str, generator: torch.Generator) -> State:
        """Its tensors at the start."""


class Head(Part, Protocol):
    """A classification head, trained together with the adapter."""

    def start(self, generator: torch.Generator) -> State:
        """Its tensors at the start."""


@dataclass(frozen=True)
class Layout:
    """The tensors of a client's state, and how it starts.

    head: None where the task needs none. extras: further tensors, which no module of the model reads, at their start.
    """

    adapter: Adapter
    head: Head | None = None
    extras: State = field(default_factory=dict)

    @cached_property
    def spec(self) -> Spec:
        """Names and shapes: the adapter's, then the head's, then those of the extras."""
        extras = {name: tuple(tensor.shape) for name, tensor in self.extras.items()}
        return Spec.of({**self.adapter.shapes, **(self.head.shapes if self.head else {}), **extras})

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return tuple(self.adapter.shapes)

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(self.head.shapes) if self.head else ()

    @property
    def kind(self) -> Any:
        """The kind of the adapter's tensors: a member of the ReFT family, LoRA, or branches of one of them."""
        return self.adapter.kind

    @property
    def rotated(self) -> tuple[str, ...]:
        return self.adapter.rotated

    def start(self, init: str, seed: int) -> State:
        """A new state; one seed gives the same state on every machine."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {**self.adapter.start(init, generator), **(self.head.start(generator) if self.head else {})}
        return {**drawn, **{name: tensor.clone() for name, tensor in self.extras.items()}}


def is_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite. It checks block by block, since `isfinite` copies and x may be large."""
    return all(bool(block.isfinite().all()) for block in x.flatten().split(1 << 20))
