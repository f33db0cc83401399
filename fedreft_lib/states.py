"""A federation is a matrix: named tensors of N clients <-> X (N, P), and files of either.

`Spec` says which columns are which tensor. Everything that aggregation does, it does to X; everything that
training does, it does to the named tensors of one row.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import FedReFTError
from .interventions import State

HASH = "sha256"  # the note that a file's hash stands under


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


def is_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite; by blocks, since `isfinite` makes copies of a tensor that may be large."""
    return all(bool(block.isfinite().all()) for block in x.flatten().split(1 << 20))


def save_tensors(tensors: dict[str, Tensor], path: Path, notes: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that `path` is at any moment either the old file or the whole new one.

    notes: texts that go with the tensors. A hash of both is kept in the file, so that damage is noticed on reading.
    Raises OSError, and leaves no temporary file, where it cannot be written. One process at a time may write `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    write_tensors(tensors, temporary, notes or {})
    replace_durably(temporary, path)


def write_tensors(tensors: dict[str, Tensor], path: Path, notes: dict[str, str]) -> None:
    """What `load_tensors` reads, as a plain new file. Raises OSError, and leaves none, where it cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, path, {**notes, HASH: hash_of(tensors, notes)})
    except (SafetensorError, OSError) as error:  # a full disk, most often
        path.unlink(missing_ok=True)
        raise OSError(str(error)) from None


def replace_durably(temporary: Path, path: Path) -> None:
    """Flush `temporary` to the disk, then let it take the name `path` in one step."""
    try:
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)
    if os.name == "posix":  # a name is on the disk when its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """`save_tensors` for text."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    replace_durably(temporary, path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the notes of a file of `save_tensors`. Raises FedReFTError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            notes = dict(file.metadata() or {})
    except Exception as error:  # safetensors raises its own, OSError or ValueError, depending on the damage
        reason = " ".join(str(error).split())
        raise FedReFTError(f"{path} cannot be read as safetensors ({reason})") from None
    if notes.pop(HASH, None) != hash_of(tensors, notes):
        raise FedReFTError(f"{path} is not as it was written (its hash is another)")
    return tensors, notes


def hash_of(tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> str:
    """A hash of names, types, shapes and values, and of the notes."""
    digest = hashlib.sha256(json.dumps(notes or {}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
