"""The line about the running notebook."""

import io

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fedreft_lib.batch.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("out", "lines"), [(io.StringIO(), 2), (Terminal(), 1)])
def test_progress_is_one_moving_line_on_a_terminal_and_plain_lines_elsewhere(out, lines):
    with Progress("[1/1] 00_tour", out) as progress:
        progress.start(new_notebook(cells=[new_code_cell(), new_code_cell()]))
        progress.cell(new_code_cell(), 0)
    assert out.getvalue().count("\n") == lines
    assert ("\r" in out.getvalue()) == out.isatty()
    assert "[1/1] 00_tour: 2 cells, 0 s" in out.getvalue()


def test_the_last_execution_is_told_as_such_and_nothing_is_estimated():
    out = io.StringIO()
    with Progress("00_tour", out, "starting", last=95.4):
        pass
    assert out.getvalue().splitlines() == ["00_tour: starting, 0 s (last time 95 s in all)", "00_tour: 0 cells, 0 s"]
