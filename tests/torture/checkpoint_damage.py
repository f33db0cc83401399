"""Random damage to a run's folder: `python -m tests.torture.checkpoint_damage 200`.

One file of a finished run is cut off, emptied, overwritten or has bytes flipped, inserted or taken out; sometimes
several files, sometimes all. The run survives if reading it ends in a good state or in one sentence, and running it
again ends in the bits of the undamaged one.
"""

import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from fedreft_lib import load_run, run
from fedreft_lib.errors import FedReFTError
from tests.torture import equal
from tests.torture.training_kills import CONFIGS


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content with one random damage of some kind."""
    place, length = draw.randrange(len(content) or 1), draw.choice([1, 8, 300])
    junk = draw.randbytes(length)
    return draw.choice([
        content[:place],
        b"",
        junk,
        content[:place] + junk + content[place:],
        content[:place] + content[place + length :],
        content[:place] + junk + content[place + length :],
        content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :] if content else b"",
    ])  # fmt: skip


def tried(n: int, seed: int, folder: Path) -> dict[str, int]:
    """Counts: tried, survived, failed otherwise (a traceback), other bits at the end."""
    draw, config = random.Random(seed), CONFIGS[0]
    torch.set_num_threads(1)
    whole = run(config, folder / "whole", progress=False)
    counts = {"tried": 0, "survived": 0, "failed otherwise": 0, "other bits": 0}
    for _ in range(n):
        place = folder / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "whole", place)
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != ".lock")
        for path in draw.sample(files, draw.choice([1, 1, 1, 2, len(files)])):
            path.write_bytes(damaged(path.read_bytes(), draw))
        counts["tried"] += 1
        counts[_outcome(config, place, whole)] += 1
    return counts


def _outcome(config, place: Path, whole) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            try:
                load_run(place)
            except FedReFTError as error:
                assert "\n" not in str(error)
            again = run(config, place, progress=False)
        except Exception:
            return "failed otherwise"
    return "survived" if equal(again, whole) else "other bits"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(tried(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(scratch)))
