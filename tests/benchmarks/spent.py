"""What a program takes together with all processes that it starts: seconds, processor seconds, memory.

Looking slows a program down (a process stands still while the system counts its pages), by 5 to 15 per cent in those of
`users.py`. So `ran` only takes the time, and `watched` only looks, in a run of its own.

Memory is what the processes hold at once, each page counted once, looked at a few times a second; the largest sum
counts. Of memory that no file has, that is the sum of the proportional set sizes (of a page that n processes share,
each counts 1/n). Files are also mapped by processes that have nothing to do with the program, so of each file the
largest part that one of the program's processes has in memory is counted. Processor seconds are those that each process
had when it was last seen, so of each the last third of a second may be missing.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
ROLLUP = Path("/proc/self/smaps_rollup")  # without it shared memory cannot be had, or only slowly
INTERVAL = 0.3  # seconds between two looks
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ (?:\S+ ){4} *(.*)")  # the first line of each in smaps, with its file


@dataclass(frozen=True)
class Ran:
    seconds: float
    ended: float  # time.time()
    said: str  # the last line that it printed


@dataclass(frozen=True)
class Watched:
    processor: float  # seconds of all threads of all processes
    memory: int  # bytes


def ran(command: Sequence[str], look: Callable[[psutil.Process], object] | None = None) -> Ran:
    """Runs the command to its end. Raises RuntimeError with the last of what it printed where it fails."""
    quiet = {**os.environ, "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as logged:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=quiet, stdout=printed, stderr=logged)
        while look and process.poll() is None:
            look(psutil.Process(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(INTERVAL)
        process.wait()
        seconds, ended = time.perf_counter() - began, time.time()
        printed.seek(0), logged.seek(0)
        said, log = printed.read().splitlines(), logged.read().splitlines()
    if process.returncode or not said:
        raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(log[-20:]))
    return Ran(seconds, ended, said[-1])


def watched(command: Sequence[str]) -> Watched:
    """Runs the command as `ran` does, and looks at it."""
    processor: dict[tuple, float] = {}
    memory = [0]

    def look(root: psutil.Process) -> None:
        anonymous, files = 0, Counter()
        with suppress(psutil.Error):
            for each in [root, *root.children(recursive=True)]:
                with suppress(psutil.Error, OSError):
                    times = each.cpu_times()
                    processor[each.pid, each.create_time()] = times.user + times.system
                    own, of_files = held(each.pid)
                    anonymous, files = anonymous + own, files | of_files  # | takes the larger of each file's
        memory.append(anonymous + files.total())

    ran(command, look)
    return Watched(sum(processor.values()), max(memory))


def held(pid: int) -> tuple[int, Counter[str]]:
    """A process's share of memory that no file has, and what it has in memory of each file that it maps, in bytes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    own = sum(int(kilobytes) for kilobytes in re.findall(r"Pss_(?:Anon|Shmem): *(\d+)", rollup))
    files: Counter[str] = Counter()
    for path, name, kilobytes in _lines(Path(f"/proc/{pid}/smaps").read_text()):
        if path.startswith("/") and not path.startswith("/dev/"):
            files[path] += 1024 * int(kilobytes) * (1 if name == "Rss" else -1)
    return 1024 * own, files


def _lines(smaps: str) -> Iterator[tuple[str, str, str]]:
    """What stands in each mapping of how much of it is in memory, and how much of that no file has: file, name, kB."""
    path = ""
    for line in smaps.splitlines():
        if begins := MAPPING.fullmatch(line):
            path = begins[1]
        elif line.startswith(("Rss:", "Anonymous:")):
            name, kilobytes, _ = line.split()
            yield path, name.removesuffix(":"), kilobytes


def of_module(name: str, *arguments: object, python: str | Path = sys.executable) -> list[str]:
    """The command `python -m name ARGUMENTS`."""
    return [str(python), "-m", name, *map(str, arguments)]
