"""Small projects with notebooks and params files of their own, for tests of the batch."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

DEFAULTS = 'mixing = 0.3\nlr = 1e-3  # AdamW\nsource = "packaged"\ndata_dir = None\nseeds = [0]\noutput_dir = "../x"'


def write_notebook(root: Path, name: str, *code: str, parameters: str = DEFAULTS, metadata: dict | None = None) -> None:
    """notebooks/NAME.ipynb with a parameters cell and the given cells of code."""
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(new_code_cell, code)]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=metadata or {}), path)


def write_parameters(root: Path, name: str, text: str, profile: str = "quick") -> None:
    """params/PROFILE/NAME.yaml with the given text."""
    path = root / "params" / profile / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_project(root: Path) -> Path:
    """Two notebooks with parameters in the profile quick, and one without; returns the project's folder."""
    for name in ("00_tour", "01_aside", "02_commonsense"):
        write_notebook(root, name)
    write_parameters(root, "00_tour", "")
    write_parameters(root, "02_commonsense", "mixing: 0.5\nseeds: [1, 2]\n")
    return root


def told(path: Path, number: int) -> str:
    """What the code cell with this number printed, in an executed notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.text for output in cells[number].outputs if output.output_type == "stream")
