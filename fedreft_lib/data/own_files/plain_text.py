"""Text files from other people, read in pieces: UTF-8 without NUL bytes, or refused in one line.

While lines are read, memory holds one line and one piece, so a file may have any size. A line may have `LONGEST`
characters. Python's own reader would read a gzip file, UTF-16 or NUL bytes as damaged text, and one endless line into
memory.
"""

import codecs
import io
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ...errors import DataError

LONGEST = 1_000_000  # characters of a line or a row
TOO_LONG = "here are more than {:,} characters; split or shorten the row"
_LONGEST_REASON = 500  # characters of an error's reason, which may quote a cell
_PIECE = 1 << 20  # bytes
_STARTS = {
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x80": "a pickle, which is never opened,",
    b"\xff\xfe": "in UTF-16",
    b"\xfe\xff": "in UTF-16",
}


def refused(source: str | Path, where: str, fault: object) -> DataError:
    """The error about a place in a file ("" for the whole file), on one line whatever the file contains."""
    reason = str(fault).rstrip(".")
    if len(reason) > _LONGEST_REASON:
        reason = f"{reason[: _LONGEST_REASON // 2]} ... {reason[-_LONGEST_REASON // 2 :]}"
    return DataError(one_line(f"{source}, {where}: {reason}." if where else f"{source}: {reason}."))


def pieces(path: Path, any_newline: bool = False, most: int | None = None) -> Iterator[str]:
    """The text of a file in pieces of about a megabyte, without a byte-order mark.

    any_newline: every kind of line end becomes a line feed. most: the most bytes of a file that is one JSON document.
    Raises `DataError`, with the line where one is at fault.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    if any_newline:
        decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
    line = 1
    try:
        with path.open("rb") as file:
            start = file.peek()
            if kind := next((kind for sign, kind in _STARTS.items() if start.startswith(sign)), None):
                raise refused(path, "", f"this is {kind} and not UTF-8 text; save the data as text in UTF-8")
            if most and (size := os.fstat(file.fileno()).st_size) > most:
                reason = f"a JSON list or object of {size:,} bytes is too large, {most:,} are the most"
                raise refused(path, "", f"{reason}; save it as JSON lines, one row a line, which may have any size")
            for chunk in chain(iter(lambda: file.read(_PIECE), b""), [b""]):
                text = decoder.decode(chunk, final=not chunk)
                if "\0" in text:
                    line += text[: text.index("\0")].count("\n")
                    raise refused(path, f"line {line}", "here is a NUL byte; save the file as plain text in UTF-8")
                yield text
                line += text.count("\n")
    except UnicodeDecodeError as error:  # its object: part of a character from the last chunk, and this chunk
        line += error.object[: error.start].count(b"\n")
        raise refused(path, f"line {line}", "this is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise refused(path, "", f"the file cannot be read ({error.strerror})") from error


def lines(path: Path, any_newline: bool = False) -> Iterator[str]:
    """The lines of a file without their ends. Only a line feed ends a line, since a text may contain U+2028."""
    number, rest = 1, ""
    for piece in pieces(path, any_newline):
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield _short_enough(line, path, number)
            number += 1
        _short_enough(rest, path, number)
    if rest:
        yield rest


def _short_enough(line: str, path: Path, number: int) -> str:
    if len(line) > LONGEST:
        raise refused(path, f"line {number}", TOO_LONG.format(LONGEST))
    return line


def one_line(text: str) -> str:
    """The text with escapes for line breaks, control characters and halves of surrogate pairs."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
