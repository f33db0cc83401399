"""Files that are complete or absent: written under a temporary name first, with a hash where damage could go unnoticed.

torch and safetensors take seconds to import, and code that reads or writes texts needs neither.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FedReFTError

if TYPE_CHECKING:
    from torch import Tensor

HASH = "sha256"  # the name of the note with a file's hash


def save_tensors(tensors: "dict[str, Tensor]", path: Path, notes: dict[str, str] | None = None) -> None:
    """Writes a safetensors file. At any moment `path` is either the old file or the complete new one.

    notes: texts stored with the tensors. The file also has a hash of both, so that damage is noticed on reading.
    Raises OSError, and leaves no temporary file, where it cannot be written. One process at a time may write `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    write_tensors(tensors, temporary, notes or {})
    replace_durably(temporary, path)


def write_tensors(tensors: "dict[str, Tensor]", path: Path, notes: dict[str, str]) -> None:
    """Writes a new file for `load_tensors`. Raises OSError, and leaves no file, where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, path, {**notes, HASH: hash_of(tensors, notes)})
    except (SafetensorError, OSError) as error:  # most often a full disk
        path.unlink(missing_ok=True)
        raise OSError(str(error)) from None


def replace_durably(temporary: Path, path: Path) -> None:
    """Flushes `temporary` to the disk, then renames it to `path` in one step."""
    try:
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)
    if os.name == "posix":  # the name is on the disk only when its folder is flushed, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a text as `save_tensors` writes tensors, but without a hash."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    replace_durably(temporary, path)


def keep_text(path: Path, origin: str, text: str) -> None:
    """Keeps a text that can be made again, for `kept_text`. If it cannot be written, the next process makes it again.

    origin: one line that tells what the text is made of from all else, such as a hash.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{_hashes(origin, text)}\n{text}")


def kept_text(path: Path, origin: str) -> str | None:
    """A text of `keep_text`; None where there is none, or one of another origin, or a damaged one."""
    try:
        hashes, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    return text if hashes == _hashes(origin, text) else None


def _hashes(origin: str, text: str) -> str:
    return f"{origin} {hashlib.sha256(text.encode()).hexdigest()}"


def load_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The tensors and notes in a file of `save_tensors`. Raises FedReFTError where it is missing or damaged."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            notes = dict(file.metadata() or {})
    except Exception as error:  # safetensors raises its own, OSError or ValueError, depending on the damage
        reason = " ".join(str(error).split())
        raise FedReFTError(f"{path} cannot be read as safetensors ({reason})") from None
    if notes.pop(HASH, None) != hash_of(tensors, notes):
        raise FedReFTError(f"{path} is damaged: its content does not have the hash stored in it")
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
    """$FEDREFT_CACHE, else $XDG_CACHE_HOME/fedreft, else ~/.cache/fedreft; created when something is first stored.

    Raises FedReFTError where the home folder is unknown.
    """
    if "FEDREFT_CACHE" in os.environ:
        return expanded(os.environ["FEDREFT_CACHE"])
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fedreft"


def expanded(place: str) -> Path:
    """A path that may begin with "~". Raises FedReFTError where that home folder is unknown."""
    try:
        return Path(place).expanduser()
    except RuntimeError:
        raise FedReFTError(
            f"The home folder in {place} is unknown here: set FEDREFT_CACHE and FEDREFT_HIDDEN_STATES to whole paths."
        ) from None
