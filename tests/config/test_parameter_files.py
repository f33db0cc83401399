"""Params files: plain values come out as written, and whatever else a file holds is refused with one sentence."""

import json
import math
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedreft_lib.config.parameter_files import LARGEST, read_parameters
from fedreft_lib.errors import ConfigError


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("project") / "params/quick/00_tour.yaml"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("text", ["2e-3", "2E-3", "2.e-3", "0.002", "+2.0e-03", ".002", ".2e-2"])
def test_numbers_read_as_in_python(file, text):
    file.write_text(f"lr: {text}")
    assert read_parameters(file) == {"lr": 0.002}


@pytest.mark.parametrize("text", ["089", "20-29", "-_", "1e", "0o17", "e3", "y", "adaptive"])
def test_what_no_reader_takes_for_more_is_a_text(file, text):
    file.write_text(f"layers: {text}")
    assert read_parameters(file) == {"layers": text}


def test_true_false_and_null_are_meant_in_any_case(file):
    file.write_text("a: [true, True, FALSE, ~, null, Null, ]\nb:\nc: 'yes'")
    assert read_parameters(file) == {"a": [True, True, False, None, None, None], "b": None, "c": "yes"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "~", "\ufeff"])
def test_a_file_without_values_has_no_parameters(file, text):
    file.write_text(text, encoding="utf-8")
    assert read_parameters(file) == {}


# What both YAML and JSON take as it is: no control characters, no line separators.
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), max_size=20)
NAMES = TEXTS.filter(str.isprintable)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(values=st.dictionaries(NAMES, VALUES, max_size=6))
@settings(max_examples=200, deadline=None)
def test_plain_values_come_back_as_they_were_written(file, values):
    file.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")  # which YAML includes
    assert read_parameters(file) == values


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{y}: &{y} [*{x}, *{x}, *{x}, *{x}]\n" for x, y in zip("abcde", "bcdef", strict=True)
)
REFUSED = [
    ("lr: !!python/object/apply:os.system ['touch burnt']", "has the tag .*os.system.* .line 1.: leave tags out"),
    ("!!python/object/new:list [1]", "has the tag"),
    ("lr: !!float 1", "has the tag"),
    ("lr: !own 1", "has the tag"),
    ("tasks: !!set {a, b}", "has the tag"),
    ("%TAG ! tag:yaml.org,2002:python/\n---\nlr: !name:os.system", "has the tag"),
    (LAUGHS, "has an anchor or an alias .line 1.: write the value itself"),
    ("lr: &a 1", "has an anchor or an alias"),
    ("a: &a\n  - *a", "has an anchor or an alias"),
    ("a: *b", "has an anchor or an alias"),
    ("<<: {lr: 1}", "has the merge key <<"),
    ("a: {<<: {lr: 1}}", "has the merge key <<"),
    ("lr: 1\nlr: 2", "gives lr twice .line 2.: keep one"),
    ("a:\n  lr: 1\n  lr: 2", "gives lr twice .line 3."),
    ("a: [{lr: 1, 'lr': 2}]", "gives lr twice"),
    ("a: 1\n---\nb: 2", "is not valid YAML: expected a single document in the stream but found another .*line 2"),
    ("lr: 2026-01-01", "has the value '2026-01-01' .line 1.: write .* or a text in quotes"),
    ("a: [{b: 2026-01-01 10:00:00}]", "has the value '2026-01-01 10:00:00'"),
    ("a: =", "has the value '='"),
    ("lr: .inf", "has the value '.inf' .line 1.: write a decimal and finite number"),
    ("lr: [-.inf]", "finite"),
    ("lr: .NaN", "finite"),
    ("lr: 1e999", "finite"),
    ("lr: 1_000.5", "decimal and finite"),
    ("lr: 1:30.5", "decimal and finite"),
    ("seed: " + "9" * 5000, r"has the value '9+\.\.\. .5002 characters. .line 1.: .* of up to 18 digits"),
    ("seed: 010", "has the value '010' .* up to 18 digits"),
    ("%YAML 1.1\n---\nseed: 010", "has the value '010' .line 3."),
    ("seed: 0x1F", "up to 18 digits"),
    ("seed: 1_000", "up to 18 digits"),
    ("seed: 1:30", "up to 18 digits"),
    ("a: yes", "has the value 'yes' .line 1.: write .* true, false, null, or a text in quotes"),
    ("a: [On, no]", "has the value 'On'"),
    ("a: " + "[" * 5000, "nests lists or mappings more than 16 deep .line 1."),
    ("- " * 5000, "nests lists or mappings more than 16 deep"),
    ("".join(" " * n + "a:\n" for n in range(300)), "more than 16 deep .line 16."),
    ("? [a]\n: 1", "a list or mapping is no name .line 1."),
    ("1: 2", "1' is no name"),
    ("a: {yes: 2}", "'yes' is no name"),
    ("'a\\nb': 2\n\"a\\nb\": 2", "is no name"),
    ("x" * 100 + ": 1", "is no name"),
    ("'': &", "is not valid YAML"),
    ('a: "\\ud800"', r"holds the control character '\\ud800' as an escape .line 1."),
    ('a: "\\0"', r"holds the control character '\\x00' as an escape"),
    ('a: "\\UFFFFFFFF"', "is not valid YAML"),
    ("a: 1\nb: \x00", r"holds the control character '\\x00' .line 2."),
    ("a: \x1b[31m", r"holds the control character '\\x1b'"),
    ("a:\n\t- 1", "is not valid YAML"),
    ("- a", "must be lines of `name: value` .line 1."),
    ("just text", "must be lines of `name: value`"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_more_than_plain_values_is_refused_with_the_line(file, tmp_path, monkeypatch, text, sentence):
    monkeypatch.chdir(tmp_path)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^params/quick/00_tour.yaml .*{sentence}") as caught:
        read_parameters(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: 1\nb: \xff", "is not UTF-8 text .line 2.: save it as UTF-8"),
        ("lr: 1".encode("utf-16"), "is not UTF-8 text"),
        (b"a: 1\n" * (LARGEST // 5 + 1), "is larger than 64 KiB"),
        (b"a" * 10_000_000, "is larger than 64 KiB"),
    ],
)
def test_a_file_that_is_no_small_text_is_refused(file, content, sentence):
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^params/quick/00_tour.yaml {sentence}"):
        read_parameters(file)


def test_a_folder_in_the_place_of_a_file_is_refused(file):
    folder = file.parent / "01_folder.yaml"
    folder.mkdir()
    with pytest.raises(ConfigError, match="params/quick/01_folder.yaml cannot be read .Is a directory"):
        read_parameters(folder)


def test_aliases_that_multiply_take_no_memory(file):
    file.write_text(LAUGHS.replace("[x, x]", f"[{', '.join('x' * 9 for _ in range(2000))}]"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError):
        read_parameters(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KB; the lists would have 2 million


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and all(map(is_plain, value.values()))
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value))


# What YAML gives a meaning to, so that random files get past the first character.
PIECES = st.sampled_from(
    ["a", "b: ", ": ", "- ", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ", ", "? ", "&a ", "*a", "!!", "!", "|", ">",
     "'", '"', "\\x", "\\u0", "\\ud800", "#", "%", "%YAML 9.9\n", "---\n", "...\n", "<<: ", "=", "~", "1e3", "0x",
     "0o7", "-", ".", ".inf", "1:60", "_", "2026-01-01", "yes", "\t", "\r", "\x85", "\u2028", "\ufeff", "\x00", "é"]
)  # fmt: skip


@given(content=st.binary(max_size=60) | st.lists(PIECES, max_size=30).map(lambda pieces: "".join(pieces).encode()))
@example(b'"\\U7FFFFFFF": 1')
@settings(max_examples=800, deadline=None)
def test_any_bytes_give_plain_values_or_one_sentence(file, content):
    file.write_bytes(content)
    try:
        assert is_plain(read_parameters(file))
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1 and str(error).startswith("params/quick/00_tour.yaml ")
