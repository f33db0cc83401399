"""work/: copies of the notebooks to run and to change, so that a saved run makes no diff. git ignores the folder.

    notebooks/NAME       as committed, without outputs
    work/NAME            its copy, of each file in notebooks/
    work/.laid.json      a hash of each copy as it was laid here

A copy is renewed when its original has changed. One that its reader has changed stays as it is, and is named. What
counts in a notebook is the text of its cells: JupyterLab also writes outputs, notes of its own and an empty last cell.

The parameters cell of a copy has a profile's values. So its runs have the same names as those of `reproduce`, which
`found_runs` brings.
"""

import ast
import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from papermill.translators import PythonTranslator

from ..config.notebook_parameters import assignments
from ..files import replace_durably, write_text
from .jobs import Job
from .record import kernel

WORK, INDEX, LAID = "work", "index.ipynb", ".laid.json"


class Copies(NamedTuple):
    """The names of the copies that were laid or renewed, and of changed ones whose original is another now, too."""

    laid: list[str]
    kept: list[str]


def lay(root: Path, jobs: Iterable[Job], welcome: Callable[[list[str]], str]) -> Copies:
    """Lays a copy of each file of root/notebooks into root/work.

    jobs: which values the copies have. welcome(kept): the last cell of the index, as Markdown, given the names of the
    copies that are kept.
    """
    values = {job.notebook: job.parameters for job in jobs}
    work, hashes, copies = root / WORK, _read_json(root / WORK / LAID), Copies([], [])
    for name in _names(root / "notebooks"):
        original, copy = root / "notebooks" / name, work / name
        content = original.read_bytes()
        if original.suffix == ".ipynb":
            notebook = json.loads(content)
            notebook["metadata"] |= kernel()
            if original in values:
                _set_parameters(notebook, values[original])
            if name == INDEX:
                _add_cell(notebook, welcome(copies.kept))
            content = (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
        wanted, laid = _hash(content), hashes.get(name)
        there = _hash(copy.read_bytes()) if copy.exists() else None
        if there not in (wanted, laid, None):  # its reader has changed it
            if laid != wanted:
                copies.kept.append(name)
            continue
        if there != wanted:
            _write(copy, content)
            copies.laid.append(name)
        hashes[name] = wanted
    write_text(work / LAID, json.dumps(hashes, indent=1))
    return copies


def _names(folder: Path) -> list[str]:
    """The files below a folder, the index last, without hidden ones (such as JupyterLab's checkpoints)."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    shown = [name.as_posix() for name in names if not any(part.startswith((".", "__py")) for part in name.parts)]
    return sorted(shown, key=lambda name: (name == INDEX, name))


def _hash(content: bytes) -> str:
    """A hash of a file; of a notebook, of the texts in its cells."""
    with suppress(ValueError, LookupError, TypeError):  # it is no notebook, or a damaged one
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(content)["cells"]]
        content = json.dumps([cell for cell in cells if cell[1].strip()]).encode()
    return hashlib.sha256(content).hexdigest()


def _read_json(path: Path) -> dict[str, str]:
    """What was laid; {} where that is missing or damaged, and each copy that differs then counts as its reader's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    replace_durably(temporary, path)


# --- what is changed in a copy ----------------------------------------------------------------------------------------


def _set_parameters(notebook: dict, values: dict[str, Any]) -> None:
    """Puts values into the parameters cell; `output_dir` stays the notebook's own."""
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    others = {name: value for name, value in values.items() if name != "output_dir"}
    cell["source"] = with_values("".join(cell["source"]), others).splitlines(keepends=True)


def with_values(source: str, values: dict[str, Any]) -> str:
    """Lines `name = value` with other values. Equal ones stay as they are written, comments too; new names go last."""
    known = assignments(source)
    text = source.encode()  # ast counts in bytes
    starts = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    for statement in reversed(ast.parse(source).body):
        name = (statement.targets[0] if isinstance(statement, ast.Assign) else statement.target).id
        if name in values and values[name] != known[name]:
            old = statement.value
            start, end = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
            text = text[:start] + PythonTranslator.translate(values[name]).encode() + text[end:]
    new = [f"\n{name} = {PythonTranslator.translate(value)}" for name, value in values.items() if name not in known]
    return text.decode() + "".join(new)


def _add_cell(notebook: dict, markdown: str) -> None:
    cell = {"cell_type": "markdown", "id": "here", "metadata": {}, "source": markdown.splitlines(keepends=True)}
    notebook["cells"].append(cell)
