"""play.html: what there is to play with, alone."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fedreft_lib.batch.play import build_play


def test_it_has_the_tagged_outputs_under_their_headings_and_nothing_else(tmp_path):
    def cell(html: str, *tags: str) -> nbformat.NotebookNode:
        return new_code_cell("1", outputs=[new_output("display_data", {"text/html": html})], metadata={"tags": tags})

    words = "# A tour\n\nNot this.\n\n## 5 A *toy*\n\nNor this.\n\n**Drag** it, as in [notebook 06](06_mixing.ipynb)."
    cells = [new_markdown_cell(words), cell("<b>toy</b>", "play"), new_markdown_cell("## Next"), cell("<b>other</b>")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "00_tour.ipynb")
    page = build_play(tmp_path).read_text(encoding="utf-8")
    assert "<h2>A <em>toy</em></h2>" in page and "<p><strong>Drag</strong> it, as in notebook 06.</p>" in page
    assert "<b>toy</b>" in page
    assert not any(text in page for text in ("Not this", "Nor this", "other", "Next", "06_mixing"))

    nbformat.write(new_notebook(cells=cells[2:]), tmp_path / "00_tour.ipynb")
    assert build_play(tmp_path) is None and not (tmp_path / "play.html").exists()
