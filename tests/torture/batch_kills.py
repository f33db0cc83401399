"""The batch, killed at any instant: an output is absent or whole, and the next call goes on to the same results.

    python -m tests.torture.batch_kills 50

Each time a new small project is run and its batch killed with SIGKILL: every other time at a random moment, else just
before one of the steps in which it changes the disk (so that those of a millisecond have their turn, too). Then the
same batch is run to its end, and all is compared with an unbroken one.
"""

import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd

from fedreft_lib.batch import unchanged
from fedreft_lib.batch.exclusive import left_over
from fedreft_lib.batch.reproduce import reproduce
from tests.helpers.projects import told, write_notebook, write_parameters

# A process that has imported the library stands by, and each batch is a fork of it: a process of its own in 20 ms.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fedreft_lib.batch.reproduce"])

CHANGES = ("os.mkdir", "os.rename", "os.remove")  # audit events; opening a file to write is the fourth
COUNT = "open('../executed', 'a').write('{}\\n')"
RUN = """
from pathlib import Path
from fedreft_lib import RunConfig, run
config = RunConfig(
    backbone="tiny-llama", source="synthetic", tasks=["piqa"], setup="iid", layers=[2], rank=1, clients=2, rounds=3,
    train_size=4, held_out_size=1, test_size=2, batch_size=2, experiment="00_first",
)
made = run(config, Path(output_dir) / "runs" / config.run_id, progress=False)
"""
READ = """
from pathlib import Path
from fedreft_lib import load_runs, results_of
table = results_of(load_runs(Path(output_dir) / "runs")).drop(columns="seconds").to_csv()
"""
WITH_RUNS = {"00_first": (RUN, "print(made.states.sum())"), "01_second": (READ, "print(table)")}
PLAIN = {
    "00_first": ("from pathlib import Path", "Path(output_dir, 'made.txt').write_text('first')", "print('first')"),
    "01_second": ("from pathlib import Path", "print('second', Path(output_dir, 'made.txt').read_text())"),
}


@dataclass
class Found:
    """What one batch came to: results without their seconds, and what each notebook printed last."""

    results: str
    printed: dict[str, str]
    seconds: float
    steps: int

    def same_as(self, other: "Found") -> bool:
        return (self.results, self.printed) == (other.results, other.printed)


def tried(n: int, seed: int, folder: Path, notebooks: dict[str, tuple] | None = None) -> dict[str, int]:
    """Kill the batch n times, in projects below `folder`; counts of

    tried, survived (all was well), torn (an output or a stamp was neither absent nor whole after the kill), lost (a
    finished notebook was executed again, results differed, the next call failed, or something was left behind).
    notebooks: name to cells of code; by default one trains and one reads its run.
    """
    notebooks, draw = notebooks or WITH_RUNS, random.Random(seed)
    unbroken = _unbroken(folder / "unbroken", notebooks)
    counts = {"tried": 0, "survived": 0, "torn": 0, "lost": 0}
    for number in range(n):
        root = folder / f"{seed}-{number}"
        _write(root, notebooks)
        if number % 2:
            _killed(root, after=draw.uniform(0, unbroken.seconds))
        else:
            _killed(root, at_step=draw.randint(1, unbroken.steps))
        torn, lost = _torn(root), _lost(root, unbroken, notebooks)
        counts["tried"] += 1
        counts["torn"] += torn
        counts["lost"] += lost
        counts["survived"] += not (torn or lost)
        if not (torn or lost):  # what went wrong stays to be looked at
            shutil.rmtree(root)
    return counts


def _write(root: Path, notebooks: dict[str, tuple]) -> None:
    for name, cells in notebooks.items():
        reads = {"fedreft": {"reads": "runs"}} if name != "00_first" else {}
        write_notebook(root, name, COUNT.format(name), *cells, parameters='output_dir = "../x"', metadata=reads)
        write_parameters(root, name, "")


def _batch(root: Path, at_step: int | None) -> None:
    """Runs in a process of its own; leaves in a file how often it changed the project, or kills itself before that."""
    counter = itertools.count(1)

    def watch(event: str, arguments: tuple) -> None:
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        changes = (opens or event in CHANGES) and str(arguments[0]).startswith(str(root))
        if changes and next(counter) == at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    reproduce("quick", root=root, out=io.StringIO())
    (root / "steps").write_text(str(next(counter) - 1))


def _start(root: Path, at_step: int | None = None) -> multiprocessing.Process:
    process = PROCESSES.Process(target=_batch, args=(root, at_step))
    process.start()
    return process


def _unbroken(root: Path, notebooks: dict[str, tuple]) -> Found:
    _write(root, notebooks)
    begun = time.monotonic()
    _start(root).join()
    return _found(root, time.monotonic() - begun, int((root / "steps").read_text()))


def _killed(root: Path, after: float | None = None, at_step: int | None = None) -> None:
    process = _start(root, at_step=at_step)
    process.join(after)
    process.kill()
    process.join()


def _found(root: Path, seconds: float = 0.0, steps: int = 0) -> Found:
    outputs = root / "outputs/quick"
    results = pd.read_csv(outputs / "results.csv").drop(columns="seconds").to_csv()
    printed = {path.stem: told(path, -1) for path in sorted(outputs.glob("*.ipynb"))}
    return Found(results, printed, seconds, steps)


def _torn(root: Path) -> bool:
    """Is there an output that is not a whole executed notebook, or a stamp that is not whole?"""
    outputs = root / "outputs/quick"
    for path in outputs.glob("??_*.ipynb"):
        if path.suffixes == [".ipynb"]:
            try:
                cells = nbformat.read(path, as_version=4).cells
            except Exception:  # of whatever kind
                return True
            if not all(cell.execution_count for cell in cells) or not unchanged.matches(outputs, path.stem, path):
                return True
    try:
        return not all(json.loads(path.read_text()) for path in outputs.glob("stamps/*.json"))
    except ValueError:
        return True


def _lost(root: Path, unbroken: Found, notebooks: dict[str, tuple]) -> bool:
    """Does the next call do again what was finished, come to other results, or leave something behind?"""
    outputs, log = root / "outputs/quick", root / "executed"
    finished = [name for name in notebooks if (outputs / f"{name}.ipynb").exists()]
    before = log.read_text().split() if log.exists() else []
    process = _start(root)
    process.join()
    again = log.read_text().split()[len(before) :]
    scraps = [*outputs.rglob("*.tmp"), *outputs.glob("*.running.ipynb"), *left_over(outputs)]
    if process.exitcode or scraps or set(finished) & set(again):
        return True
    return not (outputs / "report.html").exists() or not _found(root).same_as(unbroken)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(tried(int(sys.argv[1]) if len(sys.argv) > 1 else 50, seed=int(time.time()), folder=Path(place)))
