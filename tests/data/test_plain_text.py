"""A text file gives its own characters, or one line that says which line is wrong, whatever its size."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib.data.own_files import plain_text
from fedreft_lib.data.own_files.plain_text import LONGEST, lines, one_line, pieces, refused
from fedreft_lib.errors import DataError

TEXT = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("text") / "file.txt"


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "_PIECE", 3)  # bytes: characters and \r\n are torn apart
        yield


@settings(deadline=None)
@given(text=TEXT.filter(lambda text: not text.encode().startswith((b"PK\x03\x04", b"PAR1", b"ARROW1"))))
def test_the_pieces_are_the_text_and_the_lines_its_lines(path, text):
    path.write_bytes(text.encode())
    assert "".join(pieces(path)) == text
    assert "".join(pieces(path, any_newline=True)) == io.StringIO(text, newline=None).read()
    assert list(lines(path)) == (text.removesuffix("\n").split("\n") if text else [])
    path.write_bytes(text.encode("utf-8-sig"))
    assert "".join(pieces(path)) == text


@settings(deadline=None)
@given(before=TEXT.map(lambda text: "a" + text), bad=st.sampled_from([b"\xff", b"\0", b"\xed\xa0\x80", b"\xc3"]))
def test_what_is_no_text_is_refused_with_its_line(path, before, bad):
    path.write_bytes(before.encode() + bad + b"\nmore")
    with pytest.raises(DataError) as caught:
        list(pieces(path))
    assert f"file.txt, line {before.count(chr(10)) + 1}: " in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content, said",
    [
        ("a,b\n".encode("utf-16"), "this is in UTF-16 and not UTF-8 text; save"),
        ("a,b\n".encode("utf-16-le"), "line 1: here is a NUL byte; save the file as plain text in UTF-8"),
        (b"\x1f\x8b\x08\0", "this is a gzip archive"),
        (b"PK\x03\x04", "this is a zip archive"),
        (b"PAR1\x15", "this is a Parquet file"),
        (b"\x80\x04\x95", "this is a pickle, which is never opened"),
    ],
)
def test_another_kind_of_file_is_called_by_its_name(path, content, said):
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"file.txt.*{said}"):
        list(pieces(path))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_line_that_is_too_long_is_refused_and_the_longest_is_not(tmp_path, monkeypatch, place):
    monkeypatch.setattr(plain_text, "_PIECE", 1 << 20)
    path = tmp_path / "long.txt"
    path.write_text("a\n" * place + "b" * LONGEST + "\nc")
    assert list(lines(path)) == ["a"] * place + ["b" * LONGEST, "c"]
    path.write_text("a\n" * place + "b" * (LONGEST + 1))
    with pytest.raises(DataError, match=f"line {place + 1}: here are more than 1,000,000 characters; split"):
        list(lines(path))


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="nothing.txt: the file cannot be read .No such file or directory"):
        list(pieces(tmp_path / "nothing.txt"))


@given(st.text())
def test_one_line_keeps_what_can_be_seen(text):
    said = one_line(text)
    assert said.isprintable()
    assert said == text or not text.isprintable()


def test_a_long_reason_is_shortened_and_keeps_both_ends():
    said = str(refused("file", "row 1", "begin " + "x" * 10**6 + "\n end"))
    assert said.startswith("file, row 1: begin xxx") and said.endswith("x\\n end.") and len(said) < 600
