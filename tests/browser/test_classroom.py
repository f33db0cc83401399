"""The classroom kit as a student and a teacher meet it: a sheet in JupyterLab, and slides without a network."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fedreft_lib.workbook import widgets

KIT = Path(__file__).parents[2] / "notebooks" / "classroom"


# The code cells of the notebook on top, as JupyterLab holds them: it draws nothing that is out of sight.
CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(({ model }) => model.type === 'code')
    .map(({ model }) => ({ count: model.executionCount, printed: model.outputs.toJSON().map((o) => o.text).join() }))"""


def write(page, answer):
    """Replaces the first exercise's `...`, runs its cell and the check, and returns what the check says."""
    page.locator(".jp-CodeCell .cm-content").nth(1).click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(f"def mean_of_others(n):\n    return {answer}")
    before = page.evaluate(CELLS)[2]["count"]
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    page.wait_for_function(f"(before) => ({CELLS})()[2].count > before", arg=before, timeout=60_000)
    return page.evaluate(CELLS)[2]["printed"].strip()


def middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_student_does_an_exercise_wrongly_then_rightly(page, start_lab, tmp_path):
    shutil.copy(KIT / "sheet_06.ipynb", tmp_path)
    lab = start_lab(tmp_path)
    lab.open(page, "sheet_06.ipynb")
    lab.run_all(page)
    assert [cell["printed"].split(":")[0] for cell in page.evaluate(CELLS)[2::2]] == ["not done yet"] * 5
    assert write(page, "torch.ones(n, n) / n") == "not right yet: zeros on the diagonal, and rows that sum to 1"
    assert write(page, "1 / (n - n)").startswith("not right yet: it stopped with ZeroDivisionError")
    assert write(page, "(torch.ones(n, n) - torch.eye(n)) / (n - 1)") == "✓ right"
    page.evaluate("() => { const { content } = window.jupyterapp.shell.currentWidget; content.activeCellIndex = 17; }")
    answer = page.locator("details").first
    answer.locator("summary").wait_for()
    assert not answer.locator("p").first.is_visible()
    answer.locator("summary").click()
    assert answer.locator("p").first.is_visible()


@pytest.mark.skipif(find_spec("sphinx_revealjs") is None, reason="`make slides` installs reveal.js")
def test_slides_open_without_a_network(new_page, tmp_path):
    toy = new_output("execute_result", data={"text/html": widgets.lam_toy().data}, execution_count=1)
    cells = [
        new_markdown_cell("# First\n\nSeen.\n\nSaid.", metadata={"tags": ["slide"]}),
        new_code_cell("", metadata={"tags": ["subslide"]}, outputs=[toy]),
        new_markdown_cell("# Second", metadata={"tags": ["slide"]}),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "lesson.ipynb")
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--config", str(KIT / "slides" / "config.py")]
    subprocess.run([*command, str(tmp_path / "lesson.ipynb")], check=True, capture_output=True)
    page = new_page(offline=True)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "lesson.slides.html").as_uri())
    page.get_by_role("heading", name="First").wait_for()
    assert page.get_by_text("Seen.", exact=True).is_visible() and not page.get_by_text("Said.", exact=True).is_visible()
    page.keyboard.press("Space")
    slider = page.get_by_label("λ")
    slider.press("ArrowRight")  # moves λ, not the slides
    assert page.locator("[data-part=lam-value]").inner_text() == "0.51" and slider.is_visible()
    knob = page.get_by_role("slider", name="client 5")
    place = middle(knob)
    page.mouse.move(*place)
    page.mouse.down()
    page.mouse.move(place[0] - 120, place[1] + 40, steps=4)
    page.mouse.up()
    assert middle(knob) == pytest.approx((place[0] - 120, place[1] + 40), abs=2)  # though slides are scaled
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    page.get_by_role("heading", name="Second").wait_for()
    assert [url for url in asked if not re.match("file:|data:", url)] == []
