"""python -m tests.benchmarks [NAMES] [--repeats N]: see the package. Writes outputs/bench/bench.csv and bench.png.

The table is that of this run alone, so with NAMES it has nothing else in it.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd

from tests.benchmarks import (
    aggregation,
    cache,
    cohort,
    deployment,
    enrolled,
    federation,
    generation,
    growth,
    machine,
    peft,
    picture,
    scoring,
    slopes,
    step,
    users,
    workers,
)
from tests.benchmarks.contest import Skipped, measured
from tests.benchmarks.sizes import FULL, Size

TOPICS = {
    module.__name__.rsplit(".", 1)[-1]: module.contests
    for module in (
        step,
        peft,
        scoring,
        generation,
        aggregation,
        federation,
        deployment,
        cache,
        cohort,
        enrolled,
        slopes,
        workers,
        growth,
        users,
    )
}
COLUMNS = [
    "name", "ours", "baseline", "ratio", "low", "high", "target", "met", "unit", "repeats", "machine", "torch",
    "threads", "load", "note",
]  # fmt: skip
OUTPUTS = Path(__file__).parents[2] / "outputs" / "bench"


def bench(names: list[str], repeats: int, size: Size, folder: Path) -> pd.DataFrame:
    """Measures the topics, prints each row as it comes, and writes table and picture after each contest."""
    here, rows = machine.described(), []
    print(machine.warning(here))
    print(f"{'':80} {'ours':>9} {'theirs':>9}      ours / theirs (quartiles)       target")
    for name in names:
        began = time.perf_counter()
        for contest in TOPICS[name](size):
            if isinstance(contest, Skipped):
                print(f"{contest.name}: skipped, {contest.reason}", flush=True)
                continue
            found = measured(contest, repeats)
            print(*map(line, found), f"    {found[0]['note']}", sep="\n", flush=True)
            rows += [{**row, **here} for row in found]
            written(pd.DataFrame(rows, columns=COLUMNS), folder)
        print(f"--- {name} took {time.perf_counter() - began:.0f} s", flush=True)
    return pd.DataFrame(rows, columns=COLUMNS)


def line(row: dict) -> str:
    """A row of the printed table."""
    aim = "" if row["target"] is None else f"{row['target']:.4g} {row['met']}"
    spread = f"{row['ratio']:9.4g} ({row['low']:.4g} to {row['high']:.4g})"
    return f"{row['name']:80} {row['ours']:9.4g} {row['baseline']:9.4g} {row['unit']:3} {spread:30}  {aim}"


def written(rows: pd.DataFrame, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(folder / "bench.csv", index=False)
    picture.ratios(rows).savefig(folder / "bench.png", dpi=150, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Our speed, as ratios.")
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"out of {', '.join(TOPICS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contest (5)")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in TOPICS]:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose out of {', '.join(TOPICS)}")
    if asked.repeats < 1:
        parser.error(f"repeats must be 1 or more, got {asked.repeats}")
    bench(asked.names or list(TOPICS), asked.repeats, FULL, OUTPUTS)
    print(f"written to {OUTPUTS.relative_to(Path.cwd()) if OUTPUTS.is_relative_to(Path.cwd()) else OUTPUTS}")


if __name__ == "__main__":
    sys.exit(main())
