"""The toy federation, in a page and in JupyterLab."""

import nbformat
import pytest

from fedreft_lib.workbook import widgets

TOY = "from fedreft_lib.workbook import widgets\nwidgets.lam_toy()"


@pytest.fixture(scope="module")
def toy_notebook(start_lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(TOY), nbformat.v4.new_code_cell("1")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": ""}})
    nbformat.write(notebook, folder / "toy.ipynb")
    return start_lab(folder)


def test_an_arrow_key_moves_lam_in_a_page(page):
    page.set_content(widgets.lam_toy().data)
    page.get_by_label("λ").press("ArrowRight")
    assert page.locator("[data-part=lam-value]").inner_text() == "0.51"


def test_an_arrow_key_moves_lam_in_jupyterlab(page, toy_notebook):
    toy_notebook.open(page, "toy.ipynb")
    toy_notebook.run_all(page, 60)
    slider = page.get_by_label("λ")
    slider.click()
    before = float(page.locator("[data-part=lam-value]").inner_text())
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert float(page.locator("[data-part=lam-value]").inner_text()) == pytest.approx(before + 0.02)
