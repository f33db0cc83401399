"""The ordered notebooks, executed one after another by papermill.

    outputs/PROFILE/            NN_name.ipynb executed, runs/, results.csv, report.html, play.html
    outputs/PROFILE/earlier/    runs that the notebooks no longer use, and what cannot be read
    outputs/PROFILE/stamps/     what each executed notebook depends on (unchanged.py), which process runs (exclusive.py)

A kill can tear the file that papermill writes. So an output is written as NN_name.running.ipynb, and gets its name when
it is complete and its stamp is written. After a kill, the next batch continues with the first unfinished notebook.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from papermill.exceptions import PapermillExecutionError

from ..errors import FedReFTError
from ..files import replace_durably, write_text
from ..runs.results import read_run, results_of
from . import unchanged
from .exclusive import alone_in, mark
from .jobs import PROJECT, Job, first_line, ordered_notebooks, plan
from .play import build_play
from .progress import Progress
from .record import clean
from .report import build_report

RUNNING = ".running.ipynb"
TO_DEVELOPERS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")  # see record.py
logging.getLogger("papermill").addHandler(logging.NullHandler())  # it also raises what it logs as an error


class NotebookError(FedReFTError):
    """A notebook failed."""


def reproduce(
    profile: str, only: Iterable[str] | None = None, root: Path | None = None, out: TextIO | None = None
) -> Path:
    """Executes the profile's notebooks and writes results.csv and the report; returns the report's path.

    A notebook is kept where nothing that it depends on has changed, see `unchanged`.

    only: numbers of notebooks, like ["02", "6"]. root: the project's folder. out: where progress is printed.
    Raises ConfigError before anything runs where a name or a value is wrong, FedReFTError where another batch runs in
    the same folder, NotebookError where a notebook fails.
    """
    root, out = root or PROJECT, out or sys.stdout
    jobs = plan(profile, only, root)
    folder = root / "outputs" / profile
    with alone_in(folder):
        _recover(folder)
        set_aside_unreadable(folder)
        for notebook in ordered_notebooks(root / "notebooks"):
            if only is None and notebook.stem not in [job.name for job in jobs]:
                lacks = f"there is no params/{profile}/{notebook.stem}.yaml"
                print(f"{notebook.stem}: skipped, {lacks}", file=out, flush=True)
        for number, job in enumerate(jobs, 1):
            _bring_up_to_date(job, folder, f"[{number}/{len(jobs)}] {job.name}", out)
        _write_results(folder)
        report = build_report(folder, f"FedReFT workbook, profile {profile}")
        play = build_play(folder)
    print(f"results: {folder / 'results.csv'}\nreport:  {report}", file=out, flush=True)
    if play is not None:
        print(f"play:    {play}", file=out, flush=True)
    return report


def _bring_up_to_date(job: Job, folder: Path, label: str, out: TextIO) -> None:
    """Executes a notebook, unless its output is up to date."""
    target = folder / job.notebook.name
    made_of = unchanged.made_of(job, folder)
    why = unchanged.why_execute(folder, job.name, made_of)
    if why is None:
        print(f"{job.name}: unchanged, kept; delete {target} to execute it again", file=out, flush=True)
        return
    before = unchanged.times(folder)
    begin = f"starting, {why}" if target.exists() else "starting"
    with Progress(label, out, begin, _last_duration(target)) as progress:
        running = execute(job, folder, progress)
    clean(running)
    files = unchanged.written(folder, before)
    set_aside(folder, job.name, unchanged.runs_of(files))
    # The stamp comes first: so each output with its final name has one, and `_recover` knows one that lacks the name.
    unchanged.write(folder, job.name, made_of | unchanged.on_the_hub(job), running, files)
    replace_durably(running, target)
    (folder / f"{job.name}.failed.ipynb").unlink(missing_ok=True)
    _write_results(folder)


def _last_duration(output: Path) -> float | None:
    """Seconds that the execution took which wrote this output; None where there is none."""
    if not output.exists():
        return None
    return nbformat.read(output, as_version=4).metadata.get("papermill", {}).get("duration")


def _write_results(folder: Path) -> None:
    results = results_of([read_run(run) for run in _run_folders(folder)])
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


def set_aside(folder: Path, experiment: str, used: set[str]) -> None:
    """Moves the runs that a notebook did not use this time (those of earlier parameters) to `folder`/earlier.

    Its runs have its name as `experiment`, or its name, a colon and a part: "06_mixing_ablation: rank". So results.csv
    has the runs of one set of parameters. used: the names of the runs that it used.
    """
    for run in map(read_run, _run_folders(folder)):
        own = run.config.experiment.split(":")[0] == experiment
        if own and run.folder.name not in used:
            _move_to_earlier(folder, run.folder)


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


# --- execution --------------------------------------------------------------------------------------------------------


class ThisPython(AsyncKernelManager):
    """Starts kernels with this interpreter and this library, whatever kernelspecs are installed."""

    folder: Path  # where the kernel works

    @property
    def kernel_spec(self) -> KernelSpec:
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        env = {
            "PYTHONPATH": path,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # with a user's own there would be no pictures
            "PYTHONWARNINGS": ",".join(f"ignore::{name}" for name in TO_DEVELOPERS),
            **mark(self.folder),
        }
        # Its messages about its connection would break the progress line. Errors of cells come as outputs.
        return KernelSpec(**get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]), env=env)


def execute(job: Job, folder: Path, progress: Progress) -> Path:
    """Executes a notebook as `folder`/NN_name.running.ipynb, and returns this path when it is complete.

    A notebook that fails is kept as NN_name.failed.ipynb. Raises NotebookError.
    """
    failed = folder / f"{job.name}.failed.ipynb"
    running = folder / f"{job.name}{RUNNING}"
    try:
        papermill.execute_notebook(
            _literal(job.notebook),
            _literal(running),
            job.parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=job.notebook.parent,
            kernel_manager_class=type("Kernels", (ThisPython,), {"folder": folder}),
            on_notebook_start=progress.start,
            on_cell_start=progress.cell,
            iopub_timeout=60,  # seconds; nbclient's 4 are too few on a busy machine
        )
    except PapermillExecutionError as error:
        os.replace(running, failed)
        raise NotebookError(
            f"{job.name} stopped in cell [{error.exec_count}] with {error.ename}: {first_line(error.evalue)} "
            f"(see {failed}); fix it and run the same command again, finished runs are kept"
        ) from None
    except RuntimeError as error:  # nbclient's DeadKernelError, or the error of a kernel that died at its start
        if "kernel" not in str(error).lower():
            raise
        os.replace(running, failed)
        raise NotebookError(
            f"{job.name}: its kernel was ended from outside, most often because memory ran out (see {failed}); close "
            "other programs and run the same command again, finished rounds are kept"
        ) from None
    except (KeyboardInterrupt, SystemExit):
        # papermill has ended the kernel; the event loop would report that as one more error.
        logging.getLogger("asyncio").addHandler(logging.NullHandler())
        running.unlink(missing_ok=True)
        raise
    return running


def _literal(path: Path) -> str:
    """A path for papermill, which fills in {names} in a path: a folder's name may contain braces."""
    return str(path).replace("{", "{{").replace("}", "}}")
