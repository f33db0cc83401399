"""The folder of stored hidden states: its place, its limit, and which files are removed first."""

import contextlib
import os
import shutil
from pathlib import Path

from ...files import cache_dir, expanded

DISK_LIMIT = 8 * 2**30  # bytes of all files together; at most a quarter of the disk space that is free without them
FILES = "[0-9a-f]" * 64 + "*.safetensors"  # complete files, and partial ones of a killed process


def folder() -> Path:
    """$FEDREFT_HIDDEN_STATES, else hidden_states in the cache folder; made when something is stored."""
    if "FEDREFT_HIDDEN_STATES" in os.environ:
        return expanded(os.environ["FEDREFT_HIDDEN_STATES"])
    return cache_dir() / "hidden_states"


def used(place: Path) -> int:
    """Bytes of all stored files."""
    return sum(size for _, size, _ in _files(place))


def _files(place: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, size, path) of the stored files, the least recently used first."""
    found = []
    for path in place.glob(FILES):
        with contextlib.suppress(OSError):  # removed meanwhile
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    return sorted(found)


def limit(place: Path) -> int:
    """The most bytes that all files may have together."""
    there = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
    return min(DISK_LIMIT, (shutil.disk_usage(there).free + used(place)) // 4)


def make_room(place: Path, size: int) -> None:
    """Remove the least recently used files until `size` more bytes are within the limit."""
    files, most = _files(place), limit(place)
    total = sum(own for _, own, _ in files)
    for _, own, path in files:
        if total + size <= most:
            return
        with contextlib.suppress(OSError):  # gone already, or mapped where a mapped file cannot be removed
            path.unlink()
            total -= own
