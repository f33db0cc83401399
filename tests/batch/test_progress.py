"""The lines about the notebooks that run."""

import io

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fedreft_lib.batch.progress import Board


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("out", "lines"), [(io.StringIO(), 2), (Terminal(), 1)])
def test_progress_is_one_moving_line_on_a_terminal_and_plain_lines_elsewhere(out, lines):
    with Board(out) as board, board.running("[1/1] 00_tour") as progress:
        progress.start(new_notebook(cells=[new_code_cell(), new_code_cell()]))
        progress.cell(new_code_cell(), 0)
    assert out.getvalue().count("\n") == lines
    assert ("\r" in out.getvalue()) == out.isatty()
    assert "[1/1] 00_tour: 2 cells, 0 s" in out.getvalue()


def test_the_last_execution_is_told_as_such_and_nothing_is_estimated():
    out = io.StringIO()
    with Board(out) as board, board.running("00_tour", last=95.4):
        pass
    assert out.getvalue().splitlines() == ["00_tour: starting, 0 s (last time 95 s in all)", "00_tour: 0 cells, 0 s"]


def test_two_that_run_share_a_terminals_line_which_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    out = Terminal()
    with Board(out) as board, board.running("[1/2] 00_tour"), board.running("[2/2] 01_data_partitioning"):
        board.say("02_commonsense: unchanged")
    drawn = [line.removesuffix("\x1b[K") for line in out.getvalue().replace("\n", "\r").split("\r")]
    assert "[1/2] 00_tour: starting, 0 s | [2/2] 01_data_partitioning"[:49] in drawn
    assert "02_commonsense: unchanged" in drawn and max(map(len, drawn)) < 50
