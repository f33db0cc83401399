"""What a batch executes: the notebooks of a profile, with their parameters, every name and value checked.

    notebooks/NN_name.ipynb     in order of NN; parameters and defaults are in the cell tagged "parameters"
    params/PROFILE/NN_name.yaml the values that differ in the profile; a notebook without this file is not part of it

papermill accepts a misspelt parameter, and the notebook then computes with the default. So everything is checked before
the first kernel starts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RunConfig
from ..config.notebook_parameters import assignments, check, first, singular
from ..config.parameter_files import read_parameters, short
from ..errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from nbformat import NotebookNode

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Job:
    """A notebook, the parameters to inject, all its parameters with values, the notebooks whose runs it reads.

    seconds: what it takes about, in the profile quick on one core. Only the order of notebooks depends on it.
    """

    notebook: Path
    parameters: dict[str, Any]
    values: dict[str, Any]
    reads: tuple[str, ...] = ()
    seconds: float = 60.0

    @property
    def name(self) -> str:
        return self.notebook.stem


def ordered_notebooks(folder: Path) -> list[Path]:
    """The files NN_name.ipynb of a folder, in order; not NN_name.failed.ipynb and the like."""
    return sorted(path for path in folder.glob("*.ipynb") if re.fullmatch(r"\d\d_[^.]+", path.stem))


def plan(profile: str, only: Iterable[str] | None = None, root: Path | None = None) -> list[Job]:
    """What `reproduce` executes, in order, with every name and value checked. Raises ConfigError."""
    root = root or PROJECT
    notebooks = {path.stem: path for path in ordered_notebooks(root / "notebooks")}
    if not notebooks:
        raise ConfigError(f"{root / 'notebooks'} holds no notebooks like 00_tour.ipynb: run this in a full clone")
    files = {path.stem: path for path in _parameter_files(profile, root)}
    for name, path in files.items():
        if name not in notebooks:
            raise ConfigError(f"{short(path)}: there is no notebook {name!r}{did_you_mean(name, notebooks)}")
    chosen = list(files) if only is None else _chosen(only, list(notebooks), files, profile)
    return [_job(notebooks[name], files[name]) for name in sorted(chosen)]


def profiles(root: Path | None = None) -> list[str]:
    """Names of the profiles: the folders with params files."""
    return sorted({path.parent.name for path in ((root or PROJECT) / "params").glob("*/*.yaml")})


def _parameter_files(profile: str, root: Path) -> list[Path]:
    known = profiles(root)
    if profile not in known:
        raise ConfigError(f"there is no profile {profile!r}{did_you_mean(profile, known)}")
    return sorted((root / "params" / profile).glob("*.yaml"))


def _chosen(only: Iterable[str], notebooks: list[str], files: dict[str, Path], profile: str) -> list[str]:
    """Names of the notebooks with these numbers. Raises ConfigError for one that is not there or not in the profile."""
    by_number = {int(name[:2]): name for name in notebooks}
    chosen = []
    for text in only:
        name = by_number.get(int(text)) if text.isascii() and text.isdigit() and len(text) <= 2 else None
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
    # A notebook that has any field of RunConfig accepts all of them, also those that its cell does not show, but not
    # one that it loops over: no `seed` where it has `seeds`.
    fields = known - set(singular(defaults, known)) if known & set(defaults) else []
    takes = {*defaults, *fields}
    try:
        if "output_dir" not in defaults:
            raise ConfigError(f"the parameters cell of {notebook.name} must have output_dir, where its runs go")
        for name in given:
            if name not in takes:
                raise ConfigError(f"{notebook.name} has no parameter {name!r}{did_you_mean(name, takes)}")
            if name == "output_dir":
                raise ConfigError(f"output_dir is set to outputs/{file.parent.name} by the batch: leave it out")
        merged = {**defaults, **given}
        check({name: value for name, value in merged.items() if name not in known}, defaults)
        RunConfig(**{k: v for k, v in {**first(merged), **merged}.items() if k in known})
    except ConfigError as error:
        raise ConfigError(f"{short(file)}: {error}") from None
    own = {"output_dir": f"../outputs/{file.parent.name}"}
    return Job(notebook, {**given, **own}, {**merged, **own}, *_reads_and_seconds(notebook))


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Names and defaults in the cell tagged "parameters". Raises ConfigError for anything but plain assignments."""
    tagged = [
        cell.source
        for cell in _read(notebook).cells
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])
    ]
    if len(tagged) != 1:
        raise ConfigError(f'{notebook.name} must have one code cell tagged "parameters", it has {len(tagged)}')
    try:
        return assignments(tagged[0])
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{notebook.name}: the parameters cell must be plain `name = value` lines ({first_line(error)})"
        ) from None


def _reads_and_seconds(notebook: Path) -> tuple[tuple[str, ...], float]:
    """Of a `Job`, by the notebook's metadata: "fedreft": {"reads": ["02", "05"], "seconds": 90}; "runs": all before.

    Raises ConfigError where one of them is not there, or is not before it, and for seconds that are no number above 0.
    """
    entry = _read(notebook).metadata.get("fedreft", {})
    before = {path.stem[:2]: path.stem for path in ordered_notebooks(notebook.parent) if path.stem < notebook.stem}
    known = isinstance(entry, dict) and set(entry) <= {"reads", "seconds"}
    named, seconds = (entry.get("reads", []), entry.get("seconds", Job.seconds)) if known else (None, None)
    numbers = list(before) if named == "runs" else named
    if not isinstance(numbers, list) or not all(number in list(before) for number in numbers):
        raise ConfigError(
            f'{notebook.name}: its metadata may say "fedreft": {{"reads": "runs"}}, or name notebooks before it as '
            f'["02"] does, got {entry!r}'
        )
    if type(seconds) not in (int, float) or not 0 < seconds < float("inf"):
        raise ConfigError(f'{notebook.name}: its metadata\'s "seconds" must be a number above 0, got {seconds!r}')
    return tuple(before[number] for number in numbers), seconds


def _read(notebook: Path) -> "NotebookNode":
    import nbformat  # takes 1.5 s to import; an unknown profile is refused before that

    try:
        return nbformat.read(notebook, as_version=4)
    except ValueError as error:
        raise ConfigError(f"{notebook.name} cannot be read as a notebook ({first_line(error)})") from None


def first_line(error: object) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [""])[0]
