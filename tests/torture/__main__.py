"""All of the torture, as a table of what was tried, what survived and what was lost: `make torture`.

python -m tests.torture [SHARE [SEED]]      SHARE 0.1 tries a tenth of everything
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

from fedreft_lib.workbook import robustness
from tests.torture import (
    GOOD,
    batch_kills,
    checkpoint_damage,
    deployment,
    files,
    full_disk,
    parameters,
    training_kills,
)


def bad_updates(n: int, seed: int, folder: Path) -> dict[str, int]:
    """Each bad update under each aggregation, n times."""
    outcomes = [outcome for i in range(n) for outcome in robustness.measured_here(seed=seed + i)["outcome"]]
    return {"tried": len(outcomes), "refused": outcomes.count("refused")}


PARTS = {
    "kills of training": (training_kills.tried, 200),
    "kills of the batch": (batch_kills.tried, 50),
    "hits in a deployment": (deployment.hit, 9),
    "guests of a deployment": (deployment.guests, 15),
    "full disks": (full_disk.tried, 20),
    "bad updates x aggregations": (bad_updates, 3),
    "damaged run folders": (checkpoint_damage.tried, 200),
    "damaged data files": (files.tried, 300),
    "parameter files and values": (parameters.tried, 600),
}


def main(share: float = 1.0, seed: int = 0) -> int:
    lost = 0
    for name, (tried, n) in PARTS.items():
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["FEDREFT_HIDDEN_STATES"] = str(Path(scratch) / "hidden_states")  # not the user's
            counts = tried(max(1, round(n * share)), seed, Path(scratch))
        lost += counts["tried"] - sum(counts.get(key, 0) for key in GOOD)
        failed = counts.pop("failed", {})  # of some parts: what went wrong, by trial
        said = ", ".join(f"{count} {key}" for key, count in counts.items())
        print(f"{name:28} {said} ({time.monotonic() - begun:.0f} s)", flush=True)
        for trial, what in failed.items():
            print(f"    {trial}: {what}")
    print(f"{lost} lost")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])))
