"""A history's rows: their CSV is pandas' own, comes back to the bit, and any other text is refused."""

import csv
import math
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib.runs.history import HISTORY, MISSING, complete, csv_of, history_of, rows_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["NA", "", 'a "b", c', "1", "\r"]
)
NUMBER = st.floats() | st.sampled_from([-0.0, math.nan, math.inf, 5e-324])
ROW = st.fixed_dictionaries(
    {
        "round": st.integers(0, 2**40), "client": TEXT, "task": TEXT, "split": TEXT, "metric": TEXT, "value": NUMBER,
        "uplink_bytes": st.integers(0, 2**62), "downlink_bytes": st.integers(0, 2**62), "seconds": NUMBER, "note": TEXT,
    }
)  # fmt: skip
FEW = {"round": 1, "client": "a", "split": "test", "metric": "accuracy", "value": 50}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=st.lists(ROW, max_size=4))
def test_rows_come_back_from_the_text_to_the_bit(rows):
    back = rows_of(csv_of(rows))
    assert repr(back) == repr([{name: row[name] for name in HISTORY} for row in rows])


def test_a_note_of_any_length_comes_back():
    rows = complete([{**FEW, "note": "it did not answer: " + "e\n" * max(200_000, csv.field_size_limit())}])
    assert rows_of(csv_of(rows)) == rows


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=st.lists(ROW.filter(lambda row: not any("\r" in str(value) for value in row.values())), max_size=4))
def test_the_text_is_what_pandas_writes(rows):
    assert csv_of(rows) == pd.DataFrame(rows, columns=list(HISTORY)).to_csv(index=False, na_rep="nan")


def test_what_is_left_out_gets_a_value_and_each_column_its_type():
    (row,) = complete([{**FEW, "note": None}])
    assert row == {**FEW, **MISSING} and type(row["value"]) is float
    assert history_of([FEW]).dtypes[["round", "value", "uplink_bytes", "seconds"]].tolist() == ["int64", "f8"] * 2
    assert list(history_of([]).columns) == list(HISTORY)
    with pytest.raises(KeyError, match="value"):
        complete([{**FEW, "value": None}])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(max_size=40), at=st.integers(0, 200))
def test_another_text_is_refused_or_still_a_history(text, at):
    whole = csv_of(complete([FEW, FEW]))
    for other in (text, whole[:at] + text + whole[at:], whole[:at]):
        try:
            found = rows_of(other)
        except (ValueError, KeyError, TypeError):
            continue
        assert all(list(row) == list(HISTORY) for row in found)


def test_who_only_computes_imports_no_pandas():
    code = "import sys; from fedreft_lib import run; print(sorted({'pandas', 'pyarrow', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
