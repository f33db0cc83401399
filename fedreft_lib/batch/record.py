"""What an executed notebook keeps: what a reader can read, and nothing that only a running kernel shows.

Dropped   finished progress bars, as widgets or in printed text; views and states of live widgets, which are empty
          without their kernel (a sentence or picture beside a view stays)
Kept      printed text in its final form, figures, tables, errors, and what was written to stderr. It may say that a
          result is not what it seems, such as "round_0004 is damaged: round 3 is used".
Named     the kernel, as JupyterLab names it. Otherwise a notebook is unsaved as soon as JupyterLab opens it, is saved
          two minutes later, and its file is no longer the one that a batch has made.

Warnings to developers (DeprecationWarning, FutureWarning) do not come so far: `reproduce` switches them off in its
kernels. They tell what a later version of a package will do, and the packages are locked.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelspec import get_kernel_dict

from ..files import write_text

WIDGET = "application/vnd.jupyter.widget-view+json"  # a view of a live widget
BAR = re.compile(r"\d%\||\d\S* \[\d+:\d\d[<,]")  # as tqdm prints it: " 40%|####", "17it [00:03, 5.1it/s]"


def clean(path: Path) -> None:
    """Leaves in an executed notebook's file what it keeps."""
    notebook = nbformat.read(path, as_version=4)
    settle(notebook)
    notebook.metadata.update(kernel())
    write_text(path, nbformat.writes(notebook) + "\n")


def settle(notebook: nbformat.NotebookNode) -> None:
    """Leaves in an executed notebook what it keeps."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = list(_kept(cell.outputs))
    notebook.metadata.pop("widgets", None)


def kernel() -> dict[str, dict]:
    """The metadata of a notebook that JupyterLab opens with this Python, as JupyterLab writes them."""
    named = {"name": "python3", **{key: get_kernel_dict()[key] for key in ("display_name", "language")}}
    return {"kernelspec": named, "language_info": IPythonKernel.language_info}


def _kept(outputs: list[nbformat.NotebookNode]) -> Iterator[nbformat.NotebookNode]:
    """The outputs with their printed text in one piece where a bar came between."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.get("data", {}).pop(WIDGET, None) is not None and set(output.data) <= {"text/plain"}:
            continue
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            output.text = final(output.text)
            if not output.text.strip():
                continue
        yield output


def final(printed: str) -> str:
    """Printed text as a terminal shows it in the end, without bars; a carriage return begins its line anew."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in printed.replace("\r\n", "\n").split("\n")]
    return "\n".join(line for line in lines if not BAR.search(line))
