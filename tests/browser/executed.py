"""A folder of executed notebooks that is made in a second: for tests of the pages that are made of such folders."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fedreft_lib.workbook import figures, widgets

WORDS = "\n\n".join(["Words that fill the window. " * 40] * 3)


def write_executed(folder: Path) -> None:
    """Two notebooks: tables narrow, wide and empty, figures, widgets, printed text, a heading in Greek."""
    fig, ax = plt.subplots(figsize=(9, 3))
    ax.plot([0, 1])
    figure = figures.image(fig, "a line that rises")
    plt.close(fig)
    wide = pd.DataFrame({f"a long name of column {i}": [1.5, None] for i in range(12)}, index=["FedAvg", "local"])
    flip = widgets.flip_book({"0": "<p>at zero</p>", "1": "<p>at one</p>"}, "λ")
    cells = [
        new_markdown_cell(
            f"# 00 A tour\n\n{WORDS}\n\n## What λ does: 1 − λ\n\n{WORDS}\n\n## A toy\n\n**Drag** client 5."
        ),
        _cell(widgets.lam_toy().data, "play"),
        _cell(wide[wide.columns[:2]]._repr_html_()),
        _cell(wide._repr_html_()),
        _cell(wide[:0]._repr_html_()),
        new_markdown_cell(f"## Printed\n\n| task | n |\n|---|---|\n| {'boolq ' * 30} | 3 |\n\n{WORDS}"),
        new_code_cell(f"print('{'x' * 200}')", outputs=[new_output("stream", name="stdout", text="word " * 60)]),
        _cell(figure),
    ]
    _write(folder / "00_tour.ipynb", cells)
    answer = "<ul><li><b>FedAvg, where clients agree.</b> It is 6.3 points above.</li></ul>"
    cells = [new_markdown_cell(f"# 06 Mixing\n\n{WORDS}\n\n## In one minute\n\n{WORDS}")]
    cells += [_cell(each, "in-one-minute") for each in (answer, figure, flip.data)]
    _write(folder / "06_mixing.ipynb", [*cells, new_markdown_cell(WORDS)])


def _cell(html: str, *tags: str) -> nbformat.NotebookNode:
    return new_code_cell("shown()", outputs=[new_output("display_data", {"text/html": html})], metadata={"tags": tags})


def _write(path: Path, cells: list[nbformat.NotebookNode]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"papermill": {"duration": 3.0}}), path)
