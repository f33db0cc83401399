"""Which notebooks need no new execution. Content decides that, never time.

outputs/PROFILE/stamps/NN_name.json is written when a notebook has run through. It has

    made_of   hashes of what the notebook depends on: its cells, its parameters, the library's files except *.md, the
              packages and their lock, the data and backbones that its parameters name, and the runs that it reads
    output    the SHA-256 of the executed notebook
    files     the SHA-256 of each other file that it wrote or used: its runs, pictures, tables

A notebook is kept if all of these are the same. Packaged weights and data have their hashes in the library
(downloads.py), and are checked against them when they are used. Of a backbone on the hub, the commit on this machine is
compared; before there is one, nothing is. Not compared: data on the hub (its revision is not known without a request,
so source="hub" counts as unchanged) and the machine (runs that were made elsewhere are kept).

The stamp is a file, and not one digest in the executed notebook's metadata: that could not vouch for the file that
holds it, nor name the part that changed.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nbformat

from ..data.file_hashes import hash_or_none, read_hash
from ..errors import FedReFTError
from ..files import write_text
from ..model.identity import UNKNOWN, backbone_identity
from .jobs import Job

LIBRARY = Path(__file__).parents[1]
PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pandas", "scikit-learn", "torchmetrics",
    "datasets", "matplotlib", "ipywidgets", "ipykernel", "nbclient", "nbformat", "papermill",
)  # fmt: skip
HUB = "its backbones on the hub"
# The parts of a profile's folder that no notebook writes.
NOT_OF_NOTEBOOKS = ("earlier", "stamps", "slides", "results.csv", "report.html", "play.html")
CHANGED = "changed while the notebook ran"


# --- what it depends on -----------------------------------------------------------------------------------------------


def made_of(job: Job, folder: Path) -> dict[str, str]:
    """A hash of each thing that the notebook's outcome depends on, before it is executed into `folder`."""
    base = job.notebook.parent
    lock = base.parent / "requirements.lock"
    parts = {
        "the notebook": _cells(job.notebook),
        "its parameters": job.values,
        "the library": hashes(LIBRARY, (path for path in _below(LIBRARY) if path.suffix != ".md")),
        "the packages": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            **hashes(lock.parent, [lock] if lock.exists() else []),
        },
        "its data": [_data(base / os.path.expanduser(name)) for name in _named(job.values, "data_dir")],
        "its backbones": [each for each in _backbones(job) if not each.startswith(UNKNOWN)],
    }
    if job.reads:
        outputs = {name: stamp["output"] for name in job.reads if (stamp := read(folder, name)) and stamp["files"]}
        owners = {"", *(name[:2] for name in job.reads)}
        runs = [path for path in _below(folder / "runs") if owner(folder, path) in owners]
        parts["the runs that it reads"] = [outputs, hashes(folder, runs)]
    return {name: _digest(part) for name, part in parts.items()} | on_the_hub(job)


def on_the_hub(job: Job) -> dict[str, str]:
    """Which commits of its hub backbones are on this machine; ask again after the notebook has downloaded one."""
    found = [each for each in _backbones(job) if each.startswith(UNKNOWN)]
    return {HUB: UNKNOWN if UNKNOWN in found else _digest(found)}


def _cells(notebook: Path) -> list[tuple]:
    cells = nbformat.read(notebook, as_version=4).cells
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in cells]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _named(values: Any, parameter: str, inside: bool = False) -> list[str]:
    """The texts that a parameter or its plural has anywhere in nested parameters. inside: all texts count."""
    if isinstance(values, str):
        return [values] if inside and values else []
    if isinstance(values, dict):
        names = (parameter, f"{parameter}s")
        each = [_named(value, parameter, inside or name in names) for name, value in values.items()]
    else:
        each = [_named(value, parameter, inside) for value in values] if isinstance(values, list | tuple) else []
    return [name for names in each for name in names]


def _data(folder: Path) -> dict[str, str | None]:
    """A hash of each file in a folder of data; {} where there is no folder."""
    return {path.relative_to(folder).as_posix(): hash_or_none(path) for path in _below(folder)}


def _backbones(job: Job) -> list[str]:
    """The identity of each backbone that the parameters name, here and now."""
    found = []
    for name in _named(job.values, "backbone"):
        try:
            found.append(backbone_identity(name, job.notebook.parent))
        except FedReFTError as error:  # the notebook will report it
            found.append(str(error))
    return found


def _digest(part: Any) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


# --- what it made -----------------------------------------------------------------------------------------------------


def owner(folder: Path, path: Path) -> str:
    """The number of the notebook that a file in a profile's folder belongs to, like "02"; "" where nothing says it.

    The files of a run belong to the notebook that its experiment names, whatever folder it is in. Of all other files,
    the first part of the path that begins with a number says it: figures/02_accuracy.png, 09_results/scores.csv.
    """
    for above in path.relative_to(folder).parents[:-1]:
        config = folder / above / "config.json"
        with suppress(FileNotFoundError):
            return _number(_experiment(config, config.stat().st_mtime_ns))
    return next(filter(None, map(_number, path.relative_to(folder).parts)), "")


@cache
def _experiment(config: Path, time: int) -> str:
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(read.get("experiment", "")) if isinstance(read, dict) else ""


def _number(name: str) -> str:
    return name[:2] if re.match(r"\d\d_", name) else ""


def times(folder: Path) -> dict[Path, int]:
    """The time of the last write to each file of a profile's folder that a notebook may write, in nanoseconds."""
    found = {}
    for path in _below(folder):
        if path.relative_to(folder).parts[0] in NOT_OF_NOTEBOOKS or (path.parent == folder and path.suffix == ".ipynb"):
            continue
        with suppress(FileNotFoundError):  # another notebook, which runs beside, has replaced it
            found[path] = path.stat().st_mtime_ns
    return found


def written(folder: Path, before: dict[Path, int], name: str) -> list[Path]:
    """The files of a notebook that are new or changed since `before` (see `times`); of a run, all if its manifest is.

    name: the notebook's. Files of another one, which may run beside it, do not count (see `owner`). Those of nobody
    count for each: better a notebook is executed once more than a file that it made is taken for granted.
    If a run is read and not computed, `runs.store.Store.finished` renews its manifest's time. Times are compared only
    with earlier times of the same file, so the clock does not matter.
    """
    now = {path: time for path, time in times(folder).items() if owner(folder, path) in ("", name[:2])}
    new = {path for path in now if before.get(path) != now[path]}
    used = {path.parent for path in new if path.name == "manifest.json"}
    return sorted(path for path in now if path in new or used & set(path.parents))


def runs_of(files: Iterable[str | Path]) -> set[str]:
    """The names of the runs whose manifests are among `files`."""
    return {path.parent.name for path in map(Path, files) if path.name == "manifest.json"}


def still(made_of: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """What a notebook was made of, from the hashes before and after it ran: `CHANGED` in place of what differs.

    A backbone on the hub that it has downloaded is known only after it.
    """
    same = {part: then for part, then in made_of.items() if now.get(part) == then}
    came = {HUB: now.get(HUB, UNKNOWN)} if made_of[HUB] == UNKNOWN else {}
    return dict.fromkeys(made_of, CHANGED) | same | came


def write(folder: Path, name: str, made_of: dict[str, str], output: Path, files: list[Path]) -> None:
    """Writes the stamp of an executed notebook. `output` may still have another name than NN_name.ipynb."""
    stamp = {"made_of": made_of, "output": read_hash(output), "files": hashes(folder, files)}
    path = _path(folder, name)
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(stamp, indent=1))


# --- whether it is still so -------------------------------------------------------------------------------------------


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """A notebook's stamp; None where it is missing or damaged."""
    try:
        stamp = json.loads(_path(folder, name).read_text(encoding="utf-8"))
        whole = isinstance(stamp["output"], str) and isinstance(stamp["made_of"] | stamp["files"], dict)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return stamp if whole else None


def matches(folder: Path, name: str, output: Path) -> bool:
    """Whether this file is the executed notebook of the stamp, undamaged."""
    stamp = read(folder, name)
    return stamp is not None and output.is_file() and read_hash(output) == stamp["output"]


def why_execute(folder: Path, name: str, made_of: dict[str, str]) -> str | None:
    """Why a notebook must be executed, in words; None where it need not be."""
    stamp = read(folder, name)
    if stamp is None:
        return "it has not been finished"
    then = stamp["made_of"]
    unknown = {HUB} if UNKNOWN in (then.get(HUB), made_of.get(HUB)) else set()
    if changed := [part for part in {**made_of, **then} if then.get(part) != made_of.get(part) and part not in unknown]:
        return f"{' and '.join(changed)} changed"
    if not matches(folder, name, folder / f"{name}.ipynb"):
        return "its output is gone or changed"
    for file, digest in stamp["files"].items():
        if not os.path.isfile(folder / file) or read_hash(folder / file) != digest:
            return f"{file} is gone or changed"
    return None


# --- files ------------------------------------------------------------------------------------------------------------


def hashes(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files, by their names below `folder`, but for those that a notebook beside has removed meanwhile."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path.relative_to(folder).as_posix()] = read_hash(path)
    return found


def _below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every file below a folder, except hidden, temporary and compiled ones; none where it cannot be read.

    Links to folders are followed, as they are where data is read, except links back to a folder in `above`.
    """
    real = os.path.realpath(folder)
    if real in above or not os.path.isdir(real) or not os.access(real, os.R_OK | os.X_OK):
        return
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:  # a notebook that runs beside has removed it
        return
    for name in names:
        path = folder / name
        if name.startswith((".", "__py")):
            continue
        if path.is_dir():
            yield from _below(path, above | {real})
        elif path.is_file() and path.suffix != ".tmp":
            yield path


def _path(folder: Path, name: str) -> Path:
    return folder / "stamps" / f"{name}.json"
