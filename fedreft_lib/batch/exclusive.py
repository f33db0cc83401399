"""One batch at a time in a folder, and nothing that an earlier one left running.

stamps/batch.lock     locked while a batch runs; the system lets go of it when the process ends, however it ends
stamps/batch.holder   who that is, for the sentence that refuses a second one

A batch that is killed leaves its kernel. ipykernel looks once a second whether its parent is still there and ends
itself; the next batch does not wait for that, but ends every process that carries the folder's mark.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ..errors import FedReFTError
from ..files import write_text

PATIENCE = 10  # seconds for a killed process to be gone


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other batches out of `folder`. Raises FedReFTError, at once, where there is one."""
    notes = folder / "stamps"
    notes.mkdir(parents=True, exist_ok=True)
    holder = notes / "batch.holder"
    lock = FileLock(notes / "batch.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FedReFTError(
            f"another batch is running in {folder} ({_said(holder)}): wait until it has ended, or end it, and run the "
            "same command again"
        ) from None
    try:
        write_text(holder, f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}")
        _end_left_over(folder)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _said(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8")
    except OSError:
        return "it has only just begun"


def mark(folder: Path) -> dict[str, str]:
    """What the environment of a kernel that works in `folder` has to have."""
    return {"FEDREFT_BATCH": str(folder.resolve())}


def left_over(folder: Path) -> list[psutil.Process]:
    """The processes with the mark of `folder`; while no batch runs in it, those of one that was killed."""
    ((name, value),) = mark(folder).items()
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
        except (psutil.Error, OSError):  # of another user, or gone meanwhile
            continue
    return found


def _end_left_over(folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while (running := left_over(folder)) and time.monotonic() < end:  # a process that is gone has no environment
        for process in running:
            try:
                process.kill()
            except psutil.Error:
                continue
        time.sleep(0.01)
