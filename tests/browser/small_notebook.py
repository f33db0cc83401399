"""A notebook of a few code cells, run in a JupyterLab of its own."""

import nbformat

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
ACTIVE = "() => jupyterapp.shell.currentWidget.content.activeCellIndex"


def run_in_lab(page, start_lab, folder, *cells: str) -> None:
    """The page then shows the notebook, all of whose cells have run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells], metadata=KERNEL)
    nbformat.write(notebook, folder / "small.ipynb")
    lab = start_lab(folder)
    lab.open(page, "small.ipynb")
    lab.run_all(page)
