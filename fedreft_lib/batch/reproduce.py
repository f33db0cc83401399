"""The ordered notebooks, executed by papermill, as many at once as the machine has cores for.

    outputs/PROFILE/            NN_name.ipynb executed, runs/, results.csv, report.html, play.html
    outputs/PROFILE/earlier/    runs that the notebooks no longer use, and what cannot be read
    outputs/PROFILE/stamps/     what each executed notebook depends on (unchanged.py), which process runs (exclusive.py)

A kill can tear the file that papermill writes. So an output is written as NN_name.running.ipynb, and gets its name when
it is complete and its stamp is written. After a kill, the next batch continues with the first unfinished notebook.
"""

import shutil
import sys
import threading
from collections.abc import Collection, Iterable
from contextlib import chdir
from pathlib import Path
from typing import TextIO

import nbformat

from ..errors import FedReFTError
from ..files import replace_durably, write_text
from ..runs.results import read_run, results_of
from . import unchanged
from .exclusive import alone_in, end_left_over
from .execution import RUNNING, Kernels, execute
from .jobs import PROJECT, Job, ordered_notebooks, plan
from .play import build_play
from .progress import Board
from .record import clean
from .report import build_report
from .side_by_side import execute_all, how_many, longest_chain_first, threads


def reproduce(
    profile: str,
    only: Iterable[str] | None = None,
    root: Path | None = None,
    out: TextIO | None = None,
    at_once: int | None = None,
) -> Path:
    """Executes the profile's notebooks and writes results.csv and the report; returns the report's path.

    A notebook is kept where nothing that it depends on has changed, see `unchanged`.

    only: numbers of notebooks, like ["02", "6"]. root: the project's folder. out: where progress is printed.
    at_once: how many notebooks run side by side; None: as this machine has cores and memory for.
    Raises ConfigError before anything runs where a name or a value is wrong, FedReFTError where another batch runs in
    the same folder, NotebookError where a notebook fails.
    """
    root, out = (root or PROJECT).absolute(), out or sys.stdout
    jobs = plan(profile, only, root)
    folder = root / "outputs" / profile
    with alone_in(folder):
        _recover(folder)
        set_aside_unreadable(folder)
        for notebook in ordered_notebooks(root / "notebooks"):
            if only is None and notebook.stem not in [job.name for job in jobs]:
                lacks = f"there is no params/{profile}/{notebook.stem}.yaml"
                print(f"{notebook.stem}: skipped, {lacks}", file=out, flush=True)
        with Board(out) as board, chdir(root / "notebooks"):
            _Batch(jobs, folder, board, at_once or how_many()).execute()
        _write_results(folder)
        report = build_report(folder, f"FedReFT workbook, profile {profile}")
        play = build_play(folder)
    print(f"results: {folder / 'results.csv'}\nreport:  {report}", file=out, flush=True)
    if play is not None:
        print(f"play:    {play}", file=out, flush=True)
    return report


class _Batch:
    """The notebooks of a batch, brought up to date side by side."""

    def __init__(self, jobs: list[Job], folder: Path, board: Board, at_once: int):
        self.jobs, self.folder, self.board = jobs, folder, board
        self.at_once = min(at_once, len(jobs))
        self.kernels = Kernels(folder, threads(self.at_once))
        self._begun: set[str] = set()  # notebooks that run now
        self._one = threading.Lock()  # what compares or moves files of the folder is done by one thread at a time

    def execute(self) -> None:
        jobs = longest_chain_first(self.jobs) if self.at_once > 1 else self.jobs
        execute_all(jobs, self.at_once, self._bring_up_to_date, self._stop)

    def _stop(self) -> None:
        self.kernels.stopped.set()
        end_left_over(self.folder)

    def _bring_up_to_date(self, job: Job) -> None:
        """Executes a notebook, unless its output is up to date."""
        target = self.folder / job.notebook.name
        with self._one:
            made_of = unchanged.made_of(job, self.folder)
            why = unchanged.why_execute(self.folder, job.name, made_of)
            if why is None:
                # Runs of other parameters may be left of a batch that was stopped before these came back.
                used = unchanged.runs_of(unchanged.read(self.folder, job.name)["files"])
                for run in set_aside(self.folder, job.name, used):
                    self.board.say(f"{job.name}: the run {run} of other parameters is in {self.folder / 'earlier'} now")
                self.board.say(f"{job.name}: unchanged, kept; delete {target} to execute it again")
                return
            before = unchanged.times(self.folder)
            if self.kernels.stopped.is_set():
                return
            self._begun.add(job.name)
        begin = f"starting, {why}" if target.exists() else "starting"
        label = f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] {job.name}"
        try:
            with self.board.running(label, begin, _last_duration(target)) as progress:
                running = execute(job, self.kernels, progress)
            clean(running)
            with self._one:
                self._finish(job, running, made_of, before)
        finally:
            self._begun.discard(job.name)

    def _finish(self, job: Job, running: Path, made_of: dict[str, str], before: dict[Path, int]) -> None:
        files = unchanged.written(self.folder, before, job.name)
        set_aside(self.folder, job.name, unchanged.runs_of(files))
        try:
            now = unchanged.made_of(job, self.folder)
        except Exception:  # the notebook is just being saved or renamed; its reader raises many kinds
            now = {}
        made_of = unchanged.still(made_of, now)
        if changed := [part for part, value in made_of.items() if value == unchanged.CHANGED]:
            self.board.say(
                f"{job.name}: {' and '.join(changed)} changed while it ran, so the next batch executes it again"
            )
        # The stamp comes first: so each output with its final name has one, and `_recover` knows one without the name.
        unchanged.write(self.folder, job.name, made_of, running, files)
        replace_durably(running, self.folder / job.notebook.name)
        (self.folder / f"{job.name}.failed.ipynb").unlink(missing_ok=True)
        _write_results(self.folder, without=self._begun - {job.name})


def _last_duration(output: Path) -> float | None:
    """Seconds that the execution took which wrote this output; None where there is none."""
    if not output.exists():
        return None
    return nbformat.read(output, as_version=4).metadata.get("papermill", {}).get("duration")


def _write_results(folder: Path, without: Collection[str] = ()) -> None:
    """results.csv of all runs, but for those of the notebooks that run now."""
    running = {name[:2] for name in without}
    kept = [run for run in _run_folders(folder) if unchanged.owner(folder, run / "manifest.json") not in running]
    results = results_of([read_run(run) for run in kept])
    write_text(folder / "results.csv", results.to_csv(index=False, na_rep="nan"))


# --- what an earlier batch left ---------------------------------------------------------------------------------------


def _recover(folder: Path) -> None:
    """Keeps a killed batch's last output if it is complete and only lacks its name; deletes its temporary files."""
    for running in folder.glob(f"*{RUNNING}"):
        name = running.name.removesuffix(RUNNING)
        if unchanged.matches(folder, name, running):
            replace_durably(running, folder / f"{name}.ipynb")
        else:
            running.unlink()
    for temporary in [*folder.glob("*.tmp"), *folder.glob("stamps/*.tmp")]:
        temporary.unlink()


def set_aside(folder: Path, experiment: str, used: set[str]) -> list[str]:
    """Moves the runs that a notebook did not use this time (those of earlier parameters) to `folder`/earlier.

    Its runs have its name as `experiment`, or its name, a colon and a part: "06_mixing_ablation: rank". So results.csv
    has the runs of one set of parameters. used: the names of the runs that it used. Returns those of the others.
    """
    owned = [run for run in _run_folders(folder) if unchanged.owner(folder, run / "manifest.json") == experiment[:2]]
    others = [run for run in owned if run.name not in used]
    for run in others:
        _move_to_earlier(folder, run)
    return [run.name for run in others]


def set_aside_unreadable(folder: Path) -> None:
    """Moves what cannot be read to `folder`/earlier: damaged outputs, and runs, such as those of other versions."""
    for run in _run_folders(folder):
        try:
            read_run(run)
        except FedReFTError:
            _move_to_earlier(folder, run)
    for output in ordered_notebooks(folder):
        if unchanged.matches(folder, output.stem, output):
            continue
        try:
            nbformat.validate(nbformat.read(output, as_version=4))
        except Exception:  # its reader raises many kinds, depending on the damage
            _move_to_earlier(folder, output)


def _run_folders(folder: Path) -> list[Path]:
    return [manifest.parent for manifest in sorted((folder / "runs").glob("*/manifest.json"))]


def _move_to_earlier(folder: Path, path: Path) -> None:
    earlier = folder / "earlier" / path.name
    if earlier.is_dir():
        shutil.rmtree(earlier)
    earlier.parent.mkdir(exist_ok=True)
    shutil.move(path, earlier)
