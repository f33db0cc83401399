"""The record of an execution: what a reader can read stays, what only a running kernel shows goes."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fedreft_lib.batch.record import clean, final

VIEW = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "testing:   0%|   | 0/4"}


def stream(text: str, name: str = "stdout") -> nbformat.NotebookNode:
    return new_output("stream", name=name, text=text)


def test_bars_and_states_of_widgets_go_and_everything_to_read_stays(tmp_path):
    path = tmp_path / "00_tour.ipynb"
    bar, slider = new_output("display_data", VIEW), new_output("display_data", {**VIEW, "text/html": "<p>a slider</p>"})
    table = new_output("execute_result", {"text/html": "<table></table>", "text/plain": "3"}, execution_count=1)
    error = new_output("error", ename="E", evalue="e", traceback=[])
    damaged = stream("UserWarning: round_0004 is damaged: round 3 is used\n", "stderr")
    outputs = [stream("a\n"), bar, stream("b\n"), slider, stream("  3%|#  | 1/9 [00:01<00:08]\r", "stderr"), damaged]
    cells = [new_markdown_cell("# A tour"), new_code_cell("1", outputs=[bar, *outputs, table, error])]
    metadata = {"papermill": {"duration": 3.0}, "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)
    clean(path)
    kept = nbformat.read(path, as_version=4)
    nbformat.validate(kept)
    assert set(kept.metadata) == {"papermill", "kernelspec", "language_info"}
    assert kept.metadata.kernelspec.display_name == "Python 3 (ipykernel)"  # as JupyterLab names it
    assert kept.cells[1].outputs == [
        stream("a\nb\n"),
        new_output("display_data", {"text/html": "<p>a slider</p>", "text/plain": VIEW["text/plain"]}),
        damaged,
        table,
        error,
    ]


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("a\rb\nc\r\n", "b\nc\n"),
        ("\r  0%|     | 0/2 [00:00<?, ?it/s]\r100%|#####| 2/2 [00:01<00:00]\ndone\n", "done\n"),
        ("\r 50%|##   | 1/2 [00:01<00:01]\r               \r", ""),
        ("17it [00:03,  5.13it/s]\n", ""),
        ("40% | of 12 [0, 1]\n", "40% | of 12 [0, 1]\n"),
    ],
)
def test_printed_text_is_as_a_terminal_shows_it_in_the_end_without_bars(printed, expected):
    assert final(printed).strip(" ") == expected
