"""One batch at a time in a folder, which first ends what a killed one left running.

stamps/batch.lock     locked while a batch runs; the system releases it when the process ends, however it ends
stamps/batch.holder   which process holds it, for the error of a second batch

A killed batch leaves its kernel. ipykernel checks once a second whether its parent still exists, and ends if not. The
next batch does not wait for that: it ends every process that has the folder's mark.

filelock does the lock. This file adds the holder's name for the refusal, and the end of a killed batch's kernels, which
no library does.
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

PATIENCE = 10  # seconds to wait until killed processes are gone


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other batches out of `folder`. Raises FedReFTError at once where another one runs."""
    notes = folder / "stamps"
    notes.mkdir(parents=True, exist_ok=True)
    holder = notes / "batch.holder"
    lock = FileLock(notes / "batch.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FedReFTError(
            f"another batch is running in {folder} ({_holder_text(holder)}): wait until it has ended, or end it, and "
            "run the same command again"
        ) from None
    try:
        write_text(holder, f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}")
        end_left_over(folder)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder_text(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8")
    except OSError:
        return "it has only just begun"


def mark(folder: Path) -> dict[str, str]:
    """The environment variable that marks the kernels of a batch in `folder`."""
    return {"FEDREFT_BATCH": str(folder.resolve())}


def left_over(folder: Path) -> list[psutil.Process]:
    """The other processes with the mark of `folder`; while no batch runs there, they are a killed batch's."""
    ((name, value),) = mark(folder).items()
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
        except (psutil.Error, OSError):  # of another user, or ended meanwhile
            continue
    return found


def end_left_over(folder: Path) -> None:
    """Ends every other process with the mark of `folder`, and waits until they are gone."""
    end = time.monotonic() + PATIENCE
    while (running := left_over(folder)) and time.monotonic() < end:  # a process that is gone has no environment
        for process in running:
            try:
                process.kill()
            except psutil.Error:
                continue
        time.sleep(0.01)
