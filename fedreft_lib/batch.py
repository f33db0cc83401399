"""The ordered notebooks, executed one after another by papermill.

    notebooks/NN_name.ipynb     in order of NN, with the parameters in
    params/PROFILE/NN_name.yaml a flat mapping; a notebook without one is not part of the profile
    outputs/PROFILE/            NN_name.ipynb executed, runs/, results.csv, report.html

papermill computes with the default of a parameter whose name it does not know, and a kill can tear the file that it is
writing. So everything is checked before the first kernel starts, and an output gets its name when it is whole.
"""

import ast
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import nbformat
import papermill
import yaml
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from .config import RunConfig
from .errors import ConfigError, FedReFTError, did_you_mean
from .report import build_report, ordered_notebooks
from .runs import load_run, load_runs, results_of
from .states import replace_durably, write_text

PROJECT = Path(__file__).parent.parent
logging.getLogger("papermill").addHandler(logging.NullHandler())  # what it logs as an error it also raises


class NotebookError(FedReFTError):
    """A notebook that did not run through."""


@dataclass(frozen=True)
class Job:
    """A notebook and what to inject into it."""

    notebook: Path
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        return self.notebook.stem


def reproduce(
    profile: str, only: Iterable[str] | None = None, root: Path | None = None, out: TextIO | None = None
) -> Path:
    """Execute the profile's notebooks and write results.csv and the report; returns the report's path.

    only: numbers of notebooks, like ["02", "6"]. root: the project's folder. out: where progress is told.
    Raises ConfigError before anything runs when a name or a value is wrong, NotebookError when a notebook fails.
    """
    root, out = root or PROJECT, out or sys.stdout
    jobs = plan(profile, only, root)
    folder = root / "outputs" / profile
    folder.mkdir(parents=True, exist_ok=True)
    set_aside_unreadable(folder)
    for notebook in ordered_notebooks(root / "notebooks"):
        if only is None and notebook.stem not in [job.name for job in jobs]:
            print(f"{notebook.stem}: skipped, there is no params/{profile}/{notebook.stem}.yaml", file=out, flush=True)
    for number, job in enumerate(jobs, 1):
        begun = time.time()
        with Progress(f"[{number}/{len(jobs)}] {job.name}", out) as progress:
            execute(job, folder, progress)
        set_aside(folder, job.name, begun)
        results = results_of(load_runs(folder / "runs"))
        write_text(folder / "results.csv", results.to_csv(index=False, na_rep="nan"))
    report = build_report(folder, f"FedReFT workbook, profile {profile}")
    print(f"results: {folder / 'results.csv'}\nreport:  {report}", file=out, flush=True)
    return report


# --- what is checked before anything runs -----------------------------------------------------------------------------


def plan(profile: str, only: Iterable[str] | None = None, root: Path | None = None) -> list[Job]:
    """What `reproduce` would execute, in order; every name and value checked. Raises ConfigError."""
    root = root or PROJECT
    notebooks = {path.stem: path for path in ordered_notebooks(root / "notebooks")}
    if not notebooks:
        raise ConfigError(f"{root / 'notebooks'} holds no notebooks like 00_tour.ipynb: run this in a full clone")
    files = {path.stem: path for path in _parameter_files(profile, root)}
    for name, path in files.items():
        if name not in notebooks:
            raise ConfigError(f"{_short(path)}: there is no notebook {name!r}{did_you_mean(name, notebooks)}")
    chosen = list(files) if only is None else _chosen(only, list(notebooks), files, profile)
    return [_job(notebooks[name], files[name]) for name in sorted(chosen)]


def profiles(root: Path | None = None) -> list[str]:
    """Names of the profiles that have parameters for a notebook."""
    return sorted({path.parent.name for path in ((root or PROJECT) / "params").glob("*/*.yaml")})


def _parameter_files(profile: str, root: Path) -> list[Path]:
    known = profiles(root)
    if profile not in known:
        raise ConfigError(f"there is no profile {profile!r}{did_you_mean(profile, known)}")
    return sorted((root / "params" / profile).glob("*.yaml"))


def _chosen(only: Iterable[str], notebooks: list[str], files: dict[str, Path], profile: str) -> list[str]:
    """Names of the notebooks with the given numbers."""
    by_number = {int(name[:2]): name for name in notebooks}
    chosen = []
    for text in only:
        name = by_number.get(int(text)) if text.isascii() and text.isdigit() else None
        if name is None:
            raise ConfigError(f"there is no notebook number {text!r}; there are {', '.join(notebooks)}")
        if name not in files:
            raise ConfigError(f"notebook {name} is not part of the profile: there is no params/{profile}/{name}.yaml")
        chosen.append(name)
    return list(dict.fromkeys(chosen))


def _job(notebook: Path, file: Path) -> Job:
    """The parameters in `file`, checked against the notebook's own and against RunConfig."""
    defaults = parameters_of(notebook)
    given = read_parameters(file)
    known = set(RunConfig.model_fields)
    # A notebook that hands its parameters to RunConfig takes every field of it, also those that it does not show; but
    # not the one that it runs through itself: `seed` where it has `seeds`.
    fields = [name for name in known if f"{name}s" not in defaults] if known & set(defaults) else []
    takes = {*defaults, *fields}
    try:
        if "output_dir" not in defaults:
            raise ConfigError(f"the parameters cell of {notebook.name} must have output_dir, where its runs go")
        for name, value in given.items():
            if name not in takes:
                raise ConfigError(f"{notebook.name} has no parameter {name!r}{did_you_mean(name, takes)}")
            if name == "output_dir":
                raise ConfigError(f"output_dir is set to outputs/{file.parent.name} by the batch: leave it out")
            if name not in known and not _alike(value, defaults[name]):
                raise ConfigError(f"{name} must be like its default {defaults[name]!r}, got {value!r}")
        merged = {**defaults, **given}
        first = {"setup": merged["setups"][0]} if merged.get("setups") else {}  # as the notebook starts
        RunConfig(**{k: v for k, v in {**first, **merged}.items() if k in known})
    except ConfigError as error:
        raise ConfigError(f"{_short(file)}: {error}") from None
    return Job(notebook, {**given, "output_dir": f"../outputs/{file.parent.name}"})


def _alike(value: Any, default: Any) -> bool:
    """Has a notebook's own parameter a value of the type of its default? (A whole number is a number, too.)"""
    return default is None or type(value) is type(default) or (type(value), type(default)) == (int, float)


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Names and defaults in the cell tagged "parameters". Raises ConfigError for anything but plain assignments."""
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except ValueError as error:
        raise ConfigError(f"{notebook.name} cannot be read as a notebook ({_first_line(error)})") from None
    tagged = [c.source for c in cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ConfigError(f'{notebook.name} must have one code cell tagged "parameters", it has {len(tagged)}')
    try:
        return dict(_assignment(statement) for statement in ast.parse(tagged[0]).body)
    except (SyntaxError, ValueError) as error:
        reason = _first_line(error)
        raise ConfigError(
            f"{notebook.name}: the parameters cell must be plain `name = value` lines ({reason})"
        ) from None


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name, ast.literal_eval(statement.value)
    raise ValueError(f"not so line {statement.lineno}")


class _Yaml(yaml.SafeLoader):
    """YAML 1.1, in which 2e-3 is a text, but for that: here it is a number, as in Python."""


_PYTHON_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", _PYTHON_FLOAT, list("-+0123456789"))


def read_parameters(file: Path) -> dict[str, Any]:
    """A YAML file with one mapping of names to plain values, lists or mappings of such. Raises ConfigError."""
    try:
        text = file.read_text(encoding="utf-8")
        node, values = yaml.compose(text, Loader=_Yaml), yaml.load(text, Loader=_Yaml)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{_short(file)} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{_short(file)} must be lines of `name: value`")
    names = [key.value for key, _ in node.value]
    for name, value in values.items():
        if names.count(name) > 1:
            raise ConfigError(f"{_short(file)} gives {name} twice: keep one of them")
        if not isinstance(value, str | int | float | list | dict | None):
            wanted = "a number, text, boolean, null, list or mapping"
            raise ConfigError(f"{_short(file)}: {name} must be {wanted}, got {value!r}")
    return values


def _short(file: Path) -> str:
    return file.relative_to(file.parents[2]).as_posix()  # params/PROFILE/NN_name.yaml


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [""])[0]


# --- execution --------------------------------------------------------------------------------------------------------


class ThisPython(AsyncKernelManager):
    """Starts kernels of this very interpreter and library, whatever kernelspecs the user has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        # A backend set by the user would leave the notebooks without pictures.
        env = {"PYTHONPATH": path, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        # Its remarks about its own connection would break the line of progress; failures of cells come as outputs.
        return KernelSpec(**get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]), env=env)


def execute(job: Job, folder: Path, progress: "Progress") -> Path:
    """Execute a notebook into `folder`. One that fails is kept as NN_name.failed.ipynb, and raises NotebookError."""
    target = folder / job.notebook.name
    failed = folder / f"{job.name}.failed.ipynb"
    running = folder / f"{job.name}.running.ipynb"
    try:
        papermill.execute_notebook(
            _literal(job.notebook),
            _literal(running),
            job.parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=job.notebook.parent,
            kernel_manager_class=ThisPython,
            on_notebook_start=progress.start,
            on_cell_start=progress.cell,
            iopub_timeout=60,  # seconds; nbclient's 4 are few on a machine with more to do
        )
        replace_durably(running, target)
        failed.unlink(missing_ok=True)
    except PapermillExecutionError as error:
        os.replace(running, failed)
        raise NotebookError(
            f"{job.name} stopped in cell [{error.exec_count}] with {error.ename}: {_first_line(error.evalue)} "
            f"(see {failed}); put it right and run the same command again, finished runs are kept"
        ) from None
    except DeadKernelError:
        os.replace(running, failed)
        raise NotebookError(
            f"{job.name}: its kernel was ended from outside, most often for want of memory (see {failed}); close other "
            "programs and run the same command again, finished rounds are kept"
        ) from None
    except (KeyboardInterrupt, SystemExit):
        # papermill has ended the kernel; the event loop would report that death as an error of its own.
        logging.getLogger("asyncio").addHandler(logging.NullHandler())
        raise
    finally:
        running.unlink(missing_ok=True)  # of an interrupted execution
    return target


def _literal(path: Path) -> str:
    """papermill fills in {names} in a path; a folder's name may have braces of its own."""
    return str(path).replace("{", "{{").replace("}", "}}")


def set_aside(folder: Path, experiment: str, since: float) -> None:
    """Move runs of a notebook that it did not use this time (those of earlier parameters) to `folder`/earlier.

    Its runs are those whose `experiment` is its name, or its name, a colon and a part: "06_mixing_ablation: rank".
    A run that is used has its manifest's time renewed; so results.csv holds the runs of one set of parameters.
    """
    for run in load_runs(folder / "runs"):
        own = run.config.experiment.split(":")[0] == experiment
        if own and (run.folder / "manifest.json").stat().st_mtime < since - 1:
            _move_to_earlier(folder, run.folder)


def set_aside_unreadable(folder: Path) -> None:
    """Move runs that cannot be read, such as those of another version of the library, to `folder`/earlier."""
    for manifest in sorted((folder / "runs").glob("*/manifest.json")):
        try:
            load_run(manifest.parent)
        except FedReFTError:
            _move_to_earlier(folder, manifest.parent)


def _move_to_earlier(folder: Path, run: Path) -> None:
    earlier = folder / "earlier" / run.name
    shutil.rmtree(earlier, ignore_errors=True)
    earlier.parent.mkdir(exist_ok=True)
    shutil.move(run, earlier)


class Progress:
    """One line about one notebook, that moves on a terminal; elsewhere a line at the start, each minute and the end."""

    def __init__(self, label: str, out: TextIO):
        self.label, self.out = label, out
        self.current, self.cells, self.begun = 0, 0, time.monotonic()
        self.live = out.isatty()
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def start(self, notebook: nbformat.NotebookNode) -> None:
        self.cells = len(notebook.cells)

    def cell(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.current = cell_index + 1

    def __enter__(self) -> "Progress":
        self._say("starting")
        self._clock.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._over.set()
        self._clock.join()
        self._say(f"{self.cells} cells" if kind is None else f"stopped at cell {self.current} of {self.cells}", "\n")

    def _tick(self) -> None:
        while not self._over.wait(1 if self.live else 60):
            self._say(f"cell {self.current} of {self.cells}")

    def _say(self, what: str, end: str = "") -> None:
        line = f"{self.label}: {what}, {time.monotonic() - self.begun:.0f} s"
        self.out.write(f"\r{line}\x1b[K{end}" if self.live else f"{line}\n")
        self.out.flush()
