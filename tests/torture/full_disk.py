"""Disks that run full in the middle of a run: `python -m tests.torture.full_disk 20`. Needs root, for a small tmpfs.

The run must end in one sentence, keep every round that it had saved, and go on to the bits of an undisturbed one when
there is room again.
"""

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fedreft_lib import load_run, run
from fedreft_lib.errors import FedReFTError
from tests.torture import equal
from tests.torture.training_kills import CONFIGS


class NoDiskError(Exception):
    """This process may not mount a file system."""


@contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of that size at `folder`, a new folder. Raises NoDiskError."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True)
    if made.returncode:
        raise NoDiskError(made.stderr.decode().strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def tried(n: int, seed: int, folder: Path) -> dict[str, int]:
    """Counts: tried, survived, lost (a saved round, or a traceback), other bits; how often the disk was full at all."""
    draw, config = random.Random(seed), CONFIGS[0]
    torch.set_num_threads(1)
    whole = run(config, folder / "whole", progress=False)
    needed = sum(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file()) // 1024
    counts = {"tried": 0, "survived": 0, "lost": 0, "other bits": 0}
    full = 0
    for i in range(n):
        try:
            with disk(folder / f"disk{i}", draw.randint(4, needed + 50)) as place:
                outcome, was_full = _outcome(config, place, whole)
        except NoDiskError as error:
            print(f"no disk can be made here ({error}): not tried")
            break
        counts["tried"] += 1
        counts[outcome] += 1
        full += was_full
    return {**counts, "of them full": full}


def _outcome(config, place: Path, whole) -> tuple[str, bool]:
    was_full = False
    try:
        run(config, place / "run", progress=False)
    except FedReFTError as error:
        was_full = True
        if "\n" in str(error) or "No space left" not in str(error):
            return "lost", True
        said = int(str(error).split("round ")[1].split()[0]) - 1  # the round that it says is kept
        if said >= 0 and load_run(place / "run").manifest["round"] < said:
            return "lost", True
    except Exception:
        return "lost", True
    subprocess.run(["mount", "-o", "remount,size=100m", place], check=True)
    again = run(config, place / "run", progress=False)
    return "survived" if equal(again, whole) else "other bits", was_full


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(tried(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(scratch)))
