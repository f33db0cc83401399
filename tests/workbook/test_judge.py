"""The export for a judge is AlpacaEval's form, whole or not there at all."""

import json

import pytest

from fedreft_lib.errors import DataError
from fedreft_lib.workbook.judge import export

ROW = {
    "instruction": "Why?",
    "output": "So.",
    "generator": "fedreft, client 0",
    "dataset": "tale",
    "reference": "Thus.",
}


def test_rows_are_written_as_a_json_list_of_objects_with_alpaca_eval_s_columns(tmp_path):
    path = tmp_path / "outputs.json"
    export(iter([ROW | {"loss": "1.0"}, ROW | {"instruction": "Wh\u00e4t?"}]), path)
    assert json.loads(path.read_text(encoding="utf-8")) == [ROW, ROW | {"instruction": "Wh\u00e4t?"}]
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


@pytest.mark.parametrize(
    "rows, said",
    [
        ([ROW, {"instruction": "a", "output": "b", "dataset": "c"}], "Row 2 .* has no generator and no reference"),
        ([ROW, ROW], "Row 2 .* is a second output of 'fedreft, client 0' to 'Why\\?'"),
    ],
)
def test_rows_that_a_judge_cannot_use_are_refused_and_the_file_stays_as_it_was(tmp_path, rows, said):
    path = tmp_path / "outputs.json"
    path.write_text("before")
    with pytest.raises(DataError, match=said):
        export(rows, path)
    assert path.read_text() == "before"
