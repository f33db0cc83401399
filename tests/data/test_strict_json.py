"""Whatever is JSON and sane comes out as Python's own reader has it; all else is one of our faults."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedreft_lib.data.own_files.strict_json import DEEPEST, MOST_DIGITS, Fault, decode, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
SNIPPETS = st.lists(
    st.sampled_from(list('[]{}:,"\\') + ["1", "e9", "-", "NaN", "null", " ", "\\u00e9", "\\ud800", '"a"'])
)


@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_what_python_writes_is_read_back(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert loads(f" {text}\r\n") == value
    assert decode(f"xy{text}", 2) == (value, len(text) + 2)


@given(text=st.text() | SNIPPETS.map("".join))
def test_what_is_read_is_what_python_reads(text):
    try:
        value = loads(text)
    except Fault as fault:
        assert 0 <= fault.place <= len(text)
        return
    assert value == json.loads(text)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "expecting value"),
        ('{"a": 1', "expecting ',' delimiter"),
        ("[1] 2", "more after its end"),
        ('{"a": NaN}', "NaN is no number in JSON"),
        ("-Infinity", "-Infinity is no number in JSON"),
        ("1e999", "the number 1e999 is too large"),
        ("9" * 5000, "a number has 5000 digits, and 300 are the most"),
        ("0." + "9" * 5000, "a number has 5002 digits"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "the name 'b' is twice in one object"),
        ("[" * 100_000, "nested more than 50 deep"),
        ('{"a":' * 100_000, "nested more than 50 deep"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested more than 50 deep"),
        ('["\\ud83d"]', "half a surrogate pair"),
        ('{"\\uDE00": 1}', "half a surrogate pair"),
    ],
)
def test_what_python_would_let_pass_or_fail_on_is_a_fault(text, said):
    with pytest.raises(Fault, match=said):
        loads(text)


def test_what_is_at_the_limits_is_read():
    assert loads("9" * MOST_DIGITS) == 10**MOST_DIGITS - 1
    assert loads('"\\ud83d\\ude00"') == "😀"
    assert loads("[" * DEEPEST + "]" * DEEPEST) == json.loads("[" * DEEPEST + "]" * DEEPEST)
    assert loads('"' + "[" * 1000 + '"') == "[" * 1000
    assert math.copysign(1, loads("-0.0")) == -1
