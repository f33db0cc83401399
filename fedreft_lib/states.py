"""A federation is a matrix: named tensors of N clients <-> X (N, P), and files of either.

`Spec` says which columns are which tensor. Everything that aggregation does, it does to X; everything that
training does, it does to the named tensors of one row.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import FedReFTError
from .interventions import State


@dataclass(frozen=True)
class Spec:
    """Names and shapes of the tensors of one state, in column order."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]]) -> "Spec":
        return cls(tuple((name, tuple(shape)) for name, shape in shapes.items()))

    @property
    def size(self) -> int:
        """P, the number of trainable numbers of a client."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def row(self, state: State) -> Tensor:
        """The state as one float32 vector (P,). Raises FedReFTError unless it has exactly the spec's tensors."""
        if set(state) != {name for name, _ in self.shapes}:
            raise FedReFTError(f"a state must have the tensors {[n for n, _ in self.shapes]}, got {list(state)}")
        for name, shape in self.shapes:
            if tuple(state[name].shape) != shape:
                raise FedReFTError(f"{name} must have the shape {shape}, got {tuple(state[name].shape)}")
        return torch.cat([state[name].detach().to("cpu", torch.float32).reshape(-1) for name, _ in self.shapes])

    def named(self, row: Tensor) -> State:
        """The tensors of one row (P,), as views of it."""
        sizes = [math.prod(shape) for _, shape in self.shapes]
        parts = row.split(sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes, parts, strict=True)}


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file so that `path` is at any moment either the old file or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    replace_durably(temporary, path)


def replace_durably(temporary: Path, path: Path) -> None:
    """Flush `temporary` to the disk, then let it take the name `path` in one step."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """`save_tensors` for text."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    replace_durably(temporary, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises FedReFTError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors raises its own, OSError or ValueError, depending on the damage
        raise FedReFTError(f"{path} cannot be read as safetensors ({error}): delete it and run again") from None
