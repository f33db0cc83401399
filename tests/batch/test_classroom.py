"""The classroom kit: solutions are right, sheets run unsolved, and nbgrader can grade them."""

import contextlib
import io
import re
import runpy
from functools import cache

import matplotlib
import nbformat
import pytest

from fedreft_lib.batch.jobs import PROJECT
from fedreft_lib.workbook.exercises import RIGHT, UNDONE

KIT = PROJECT / "notebooks" / "classroom"
SHEETS = [f"sheet_{lesson}" for lesson in ("00", "01", "02", "03", "04", "05", "06", "08")]
TASKS = 5  # of each sheet
POINTS = 9
sheet_of = runpy.run_path(str(KIT / "sheets.py"))["sheet_of"]


@cache
def notebook(path):
    return nbformat.read(KIT / path, as_version=4)


def code(cells):
    return [cell.source for cell in cells if cell.cell_type == "code"]


def executed(sources):
    """What they print, and the errors of the cells that raise."""
    out, errors, names = io.StringIO(), [], {}
    with contextlib.redirect_stdout(out), matplotlib.rc_context():
        for source in sources:
            try:
                exec(compile(source, "sheet", "exec"), names)
            except AssertionError as error:
                errors.append(str(error))
    return out.getvalue().splitlines(), errors


def test_every_lesson_has_a_sheet_and_its_solution():
    for folder in (KIT, KIT / "solutions"):
        assert sorted(path.stem for path in folder.glob("*.ipynb")) == SHEETS


def with_answers(name, answer):
    """The code of a solution, hidden tests and all, in which every task returns the same."""
    sources = code(notebook(f"solutions/{name}.ipynb").cells)
    return [re.sub(r"### BEGIN SOL.*### END SOLUTION", f"return {answer}", each, flags=re.DOTALL) for each in sources]


@pytest.mark.parametrize("name", SHEETS)
def test_a_solution_is_right_and_what_is_unsolved_or_made_up_does_not_count(name):
    assert executed(code(notebook(f"solutions/{name}.ipynb").cells)) == ([RIGHT] * TASKS, [])
    assert executed(with_answers(name, "...")) == ([UNDONE] * TASKS, [UNDONE] * TASKS)
    printed, errors = executed(with_answers(name, "1.5"))
    assert RIGHT not in printed and len(errors) == TASKS


@pytest.mark.parametrize("name", SHEETS)
def test_a_sheet_is_its_solution_without_the_answers(name):
    solution = nbformat.read(KIT / "solutions" / f"{name}.ipynb", as_version=4)
    assert sheet_of(solution) == notebook(f"{name}.ipynb")
    text = "".join(code(notebook(f"{name}.ipynb").cells))
    assert "SOLUTION" not in text and "HIDDEN" not in text and "require" not in text


@pytest.mark.parametrize("path", [*SHEETS, *(f"solutions/{name}" for name in SHEETS)])
def test_nbgrader_finds_each_task_and_its_points(path):
    """The rules of nbgrader's schema, version 3, without nbgrader."""
    cells = [cell for cell in notebook(f"{path}.ipynb").cells if "nbgrader" in cell.metadata]
    facts = [cell.metadata["nbgrader"] for cell in cells]
    ids = [each["grade_id"] for each in facts]
    assert len(set(ids)) == len(ids) == 2 * TASKS
    assert all(re.fullmatch(r"[a-zA-Z0-9_\-]+", name) for name in ids)
    for cell, task, test in zip(cells[::2], facts[::2], facts[1::2], strict=True):
        name = task["grade_id"]
        common = {"schema_version": 3, "task": False}
        assert task == {**common, "grade_id": name, "grade": False, "solution": True, "locked": False}
        graded = {**common, "grade_id": f"{name}_test", "grade": True, "solution": False, "locked": True}
        assert test == {**graded, "points": test["points"]}
        assert cell.source.startswith(f"def {name}(")
    assert sum(each.get("points", 0) for each in facts) == POINTS
