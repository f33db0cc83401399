"""Make the students' sheets from the solutions: `.venv/bin/python notebooks/classroom/sheets.py`

A solution is a notebook in nbgrader's source form. In a sheet the lines between BEGIN SOLUTION and END SOLUTION have
become `return ...`, and those between BEGIN HIDDEN TESTS and END HIDDEN TESTS are gone. nbgrader's own
`generate_assignment` makes the same cells (with `nbgrader_config.py`), but a reader of this workbook need not have it.
"""

import re
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION", re.MULTILINE | re.DOTALL)
HIDDEN = re.compile(r"\n### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS", re.DOTALL)


def sheet_of(solution: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The sheet that belongs to a solution, which it replaces."""
    for cell in solution.cells:
        if cell.cell_type == "code":
            cell.source = HIDDEN.sub("", SOLUTION.sub(r"\1return ...", cell.source))
    return solution


if __name__ == "__main__":
    for path in sorted((HERE / "solutions").glob("sheet_*.ipynb")):
        text = nbformat.writes(sheet_of(nbformat.read(path, as_version=4)), indent=1, ensure_ascii=False)
        (HERE / path.name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
