"""Files that are whole or not there: written beside their place first, and hashed where they hold tensors.

torch and safetensors take seconds to import, and who reads or writes a text needs neither.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FedReFTError

if TYPE_CHECKING:
    from torch import Tensor

HASH = "sha256"  # the note that a file's hash stands under


def save_tensors(tensors: "dict[str, Tensor]", path: Path, notes: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that `path` is at any moment either the old file or the whole new one.

    notes: texts that go with the tensors. A hash of both is kept in the file, so that damage is noticed on reading.
    Raises OSError, and leaves no temporary file, where it cannot be written. One process at a time may write `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    write_tensors(tensors, temporary, notes or {})
    replace_durably(temporary, path)


def write_tensors(tensors: "dict[str, Tensor]", path: Path, notes: dict[str, str]) -> None:
    """What `load_tensors` reads, as a plain new file. Raises OSError, and leaves none, where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

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


def load_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The tensors and the notes of a file of `save_tensors`. Raises FedReFTError when it is missing or damaged."""
    from safetensors import safe_open

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


def hash_of(tensors: "dict[str, Tensor]", notes: dict[str, str] | None = None) -> str:
    """A hash of names, types, shapes and values, and of the notes."""
    import torch

    digest = hashlib.sha256(json.dumps(notes or {}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def cache_dir() -> Path:
    """$FEDREFT_CACHE, else $XDG_CACHE_HOME/fedreft, else ~/.cache/fedreft; made when something is first stored."""
    if "FEDREFT_CACHE" in os.environ:
        return Path(os.environ["FEDREFT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedreft"
