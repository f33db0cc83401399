"""What a program takes together with all processes that it starts: seconds, processor seconds, memory.

Memory is the sum of their proportional set sizes (PSS: of a page that n processes share, each counts 1/n), looked at a
few times a second; the largest sum counts. Processor seconds are those that each process had when it was last seen, so
of each the last third of a second may be missing.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
ROLLUP = Path("/proc/self/smaps_rollup")  # without it PSS cannot be had, or only slowly
INTERVAL = 0.3  # seconds between two looks: a look takes the processor for some hundredths of one


@dataclass(frozen=True)
class Spent:
    seconds: float
    processor: float  # seconds of all threads of all processes
    memory: int  # bytes
    ended: float  # time.time()
    said: str  # the last line that it printed


def spent(command: Sequence[str]) -> Spent:
    """Runs the command to its end. Raises RuntimeError with the last of what it printed where it fails."""
    processor: dict[tuple, float] = {}
    quiet = {**os.environ, "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as logged:
        began, most = time.perf_counter(), 0
        process = subprocess.Popen(command, cwd=ROOT, env=quiet, stdout=printed, stderr=logged)
        while process.poll() is None:
            most = max(most, _looked_at(psutil.Process(process.pid), processor))
            with suppress(subprocess.TimeoutExpired):
                process.wait(INTERVAL)
        seconds, ended = time.perf_counter() - began, time.time()
        printed.seek(0), logged.seek(0)
        said, log = printed.read().splitlines(), logged.read().splitlines()
    if process.returncode or not said:
        raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(log[-20:]))
    return Spent(seconds, sum(processor.values()), most, ended, said[-1])


def of_module(name: str, *arguments: object, python: str | Path = sys.executable) -> Spent:
    """Of `python -m name ARGUMENTS`."""
    return spent([str(python), "-m", name, *map(str, arguments)])


def _looked_at(root: psutil.Process, processor: dict[tuple, float]) -> int:
    """The bytes of a process and all that descend from it; notes the processor seconds of each so far."""
    total = 0
    with suppress(psutil.Error):
        for each in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                times = each.cpu_times()
                processor[each.pid, each.create_time()] = times.user + times.system
                total += each.memory_full_info().pss
    return total
