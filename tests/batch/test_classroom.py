"""The classroom kit: solutions are right, sheets run unsolved, and nbgrader can grade them."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from functools import cache

import matplotlib
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from scipy import stats
from sklearn.metrics import accuracy_score, matthews_corrcoef

from fedreft_lib import INTERVENTIONS, all_but_me, mean, mix, mixing_matrix
from fedreft_lib.batch.jobs import PROJECT
from fedreft_lib.data import extract_number, rouge_l
from fedreft_lib.workbook import study, tables, widgets
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


def numbers(values):
    return "(" + ", ".join(f"{value:.1f}" for value in values) + ")"


def far(kind, factor=100):
    """What client 1 of the toy receives while client 5 is `factor` times as far away."""
    X = torch.tensor(widgets.TOY)
    X[4] *= factor
    return numbers(all_but_me(X, kind).aggregate[0].tolist())


def sizes(shapes):
    return sum(torch.Size(shape).numel() for shape in shapes)


def own_share(lam, clients):
    return mixing_matrix(all_but_me(torch.eye(clients), "mean").A, lam)[0]


def head(d, classes):
    return sum(p.numel() for layer in ((d, d), (d, classes)) for p in torch.nn.Linear(*layer).parameters())


@pytest.fixture(scope="module")
def computed():
    """Sentences of the quizzes with their numbers as the library and SciPy compute them."""
    low, high = stats.ttest_1samp([1, 2, 3], 0).confidence_interval(0.95)
    error = tables.noise(100)
    sent = torch.tensor([[1.0]] * 6 + [[-5.0]])
    assert all_but_me(sent, "mean").aggregate[0] == 0 and torch.allclose(own_share(0.75, 4), mean(torch.eye(4)).A[0])
    X = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = mix(X, all_but_me(X, "mean").A, 0.3)
    left = float((once - once.mean(0)).norm() / (X - X.mean(0)).norm())
    truth, ones = [1] * 6 + [0] * 4, [1] * 10
    accuracy, correlation = 100 * accuracy_score(truth, ones), 100 * matthews_corrcoef(truth, ones)
    return {
        "sheet_00": [
            f"2rd + r = {sizes(INTERVENTIONS['loreft'].shapes(1, 4, 576).values()):,}.",
            f"mean of the others moves to {far('mean')}, their median to {far('geometric_median')}",
            f"before, it was at {far('geometric_median', 1)}",
        ],
        "sheet_01": [
            f"= {error:.0f} points",
            f"√2 · 5 = {2**0.5 * error:.1f} points, and twice that is {8**0.5 * error:.1f}.",
        ],
        "sheet_02": [
            f"{low:.1f} to {high:.1f}", f"t for three seeds is {stats.t.ppf(0.975, 2):.2f}", f"1 / √3 = {3**-0.5:.2f}",
            f"1 − 0.95²⁰ = {100 * (1 - 0.95**20):.0f} %",
        ],
        "sheet_03": [f"B: {extract_number('30. Now 31 is odd.'):g}", f"C: {extract_number('3,4'):g}"],
        "sheet_04": [f"2PR / (P + R) = {rouge_l('the cat sat', 'the cat sat down'):.1f} %"],
        "sheet_05": [f"and 2d + 2 for C and f: {head(1024, 2):,}.", f"B: {accuracy:.0f} % and {correlation:.0f}"],
        "sheet_06": [f"0.3 · 4/3 = {left:.1f}.", f"3 / 0.2 = {study.memory(0.05, 4):.0f} rounds"],
        "sheet_08": ["(5 · 1 − 5) / 6 = 0."],
    }  # fmt: skip


@pytest.mark.parametrize("name", SHEETS)
def test_a_quiz_has_five_explained_answers_and_its_numbers_are_right(name, computed):
    cells = [cell.source for cell in notebook(f"{name}.ipynb").cells if "<details>" in cell.source]
    quiz = "\n".join(cells)
    answers = re.findall(r"<details><summary>Answer</summary>\n\n\*\*([ABC])\.\*\* .{20,}\n\n</details>", quiz)
    assert len(answers) == 5 == quiz.count("<details>")
    assert len(set(answers)) > 1  # it is not always the same letter
    assert [sentence for sentence in computed[name] if sentence not in quiz] == []


@pytest.mark.parametrize("lesson", [name.removeprefix("sheet_") for name in SHEETS])
def test_a_lesson_has_slides(lesson):
    (path,) = (PROJECT / "notebooks").glob(f"{lesson}_*.ipynb")
    tags = [tag for cell in nbformat.read(path, as_version=4).cells for tag in cell.metadata.get("tags", ())]
    assert tags.count("slide") >= 4 and tags.count("subslide") >= 4


def test_slides_show_tagged_cells_alone_and_need_no_network(tmp_path):
    """With a small stand-in for reveal.js, which `make slides` installs."""
    for file in ("__init__.py", "_static/revealjs/dist/reveal.css", "_static/revealjs/dist/reveal.js",
                 "_static/revealjs/plugin/notes/notes.js"):  # fmt: skip
        path = tmp_path / "sphinx_revealjs" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("/* stand-in */" if path.suffix != ".py" else "")
    png = {"image/png": "iVBORw0KGgo=", "text/plain": "the figure"}
    cells = [
        new_markdown_cell("Before.\n\n## Heading\n\nFirst.\n\n    formula\n\nSecond.", metadata={"tags": ["slide"]}),
        new_markdown_cell("Never shown."),
        new_code_cell("source_code()", metadata={"tags": ["subslide"]}, outputs=[
            new_output("stream", name="stderr", text="a warning"), new_output("display_data", data=png),
            new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%| |"}),
        ]),
        new_code_cell("nothing()", metadata={"tags": ["subslide"]}),
    ]  # fmt: skip
    nbformat.write(new_notebook(cells=cells), tmp_path / "lesson.ipynb")
    config = str(KIT / "slides" / "config.py")
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--config", config, "lesson.ipynb"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    page = (tmp_path / "lesson.slides.html").read_text(encoding="utf-8")
    body = page[page.index("<body") :]
    notes = "".join(re.findall(r"<aside class=\"notes\">.*?</aside>", body, re.DOTALL))
    assert all(text in notes for text in ("Before.", "Second."))
    shown = body.replace(notes, "")
    assert all(text in shown for text in ("Heading", "First.", "formula", "data:image/png;base64,iVBORw0KGgo="))
    assert not any(text in page for text in ("Never shown", "source_code", "a warning", "0%|", "nothing()"))
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", page) == [] and "https://" not in body
