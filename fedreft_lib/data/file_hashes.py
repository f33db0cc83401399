"""Hashes of files' contents, remembered so that the next call is cheap.

A file of at most `SMALL` bytes is read each time. The hash of a larger file is remembered, in this process and in the
cache folder (file_hashes/, one small file each), together with the file's path, size, times of change and inode. Every
write changes `st_ctime`, even one that keeps the size and restores the old time. (Only a write through a memory map may
change it late, or never: then replace the file, or remove the folder.) A file that changed within `SETTLED` seconds
before it was read is not remembered: the next change could have the same time on the file system's clock.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ..files import cache_dir, write_text

SMALL = 1 << 20  # bytes
SETTLED = 2.0  # seconds

_remembered: dict[str, tuple[list[int], str]] = {}  # absolute path -> status (see `_of`), hash


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, remembered where it is large. Raises OSError where it cannot be read."""
    before = os.stat(path)
    if before.st_size <= SMALL:
        return read_hash(path)
    name, status = os.path.abspath(path), _of(before)
    if (found := _remembered.get(name) or _from_disk(name)) and found[0] == status:
        _remembered[name] = found
        return found[1]
    settled = time.time() - max(before.st_mtime, before.st_ctime) > SETTLED
    digest = read_hash(path)
    if settled and _of(os.stat(path)) == status:
        _remembered[name] = status, digest
        with contextlib.suppress(OSError):  # without the note, the next process reads the file again
            _place(name).parent.mkdir(parents=True, exist_ok=True)
            write_text(_place(name), json.dumps({"file": name, "status": status, "sha256": digest}))
    return digest


def hash_or_none(path: str | Path) -> str | None:
    """`file_hash`, or None where no file can be read."""
    try:
        return file_hash(path)
    except OSError:
        return None


def read_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, read now. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _place(name: str) -> Path:
    return cache_dir() / "file_hashes" / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"


def _from_disk(name: str) -> tuple[list[int], str] | None:
    """The note of another process; None where there is none, or a damaged one."""
    try:
        found = json.loads(_place(name).read_text(encoding="utf-8"))
        whole = found["file"] == name and isinstance(found["sha256"], str) and len(found["sha256"]) == 64
        return (list(found["status"]), found["sha256"]) if whole else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
