"""Files of rows in UTF-8: JSON (a list, an object of rows), JSON lines, CSV and TSV with a header.

They come from anywhere, so there are limits, see also `plain_text` and `strict_json`. A row of JSON, and a line of a
table, has at most `LONGEST` characters; a cell has 131,072 (the csv module's limit). JSON lines and CSV are read row by
row and may have any size. A list or an object is whole in memory and has at most `LARGEST` bytes; a TSV file is whole
in memory, too, unless its header has quotation marks. A cell of a table is text, whatever it says ("NA", "007").

CSV follows RFC 4180: a cell with a comma, a line break or a quotation mark is in quotation marks, and each one in it is
doubled. A mark anywhere else is refused. TSV is written in two ways, and a whole file is in one of them:

* raw, as GLUE's files: a line is a row, a tab ends a cell, a quotation mark is an ordinary character;
* quoted, as CSV with tabs.

A header with quotation marks means quoted. Otherwise the way counts that gives every row as many cells as the header.
Where both do, it is raw if quoted would join lines, and quoted if that explains the marks: some are doubled within a
cell, or all cells of a column have them. A table that fits neither way, or still both with different rows, is refused
with its row.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ...errors import DataError, NoFileError
from ..file_hashes import hash_or_none
from .plain_text import LONGEST, TOO_LONG, lines, one_line, pieces, refused
from .strict_json import NOT_JSON, Fault, decode, loads

LARGEST = 512 << 20  # bytes of a JSON list or object
ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
_BLANK = re.compile(r"[ \t\r\n]*")
_OBJECT_OF_ROWS = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{')  # {"0": {...}


# The files that this thread has looked for since `noting` began.
_noted: ContextVar[dict[Path, str | None] | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[dict[Path, str | None]]:
    """The files that are looked for meanwhile: the hash of each before it is read, None for a missing one. While all
    of these stay the same, reading again gives the same."""
    token = _noted.set({})
    try:
        yield _noted.get()
    finally:
        _noted.reset(token)


def find(names: Sequence[str], split: str, folder: Path, endings: Sequence[str] = ENDINGS) -> Path:
    """The file of a task under any of `names`. Raises `NoFileError` that says which names it could have."""
    if path := look_for(names, split, folder, endings):
        return path
    called = " or ".join(_paths(names, split, endings))
    raise NoFileError(one_line(f"There is no {split} file of {names[0]} in {folder}: it would be called {called}."))


def find_split(names: Sequence[str], split: str, folder: Path) -> Path | None:
    """`find`, but None where there is no file for "dev", which may also be called "validation"."""
    if split == "dev":
        return look_for(names, "validation", folder) or look_for(names, "dev", folder)
    return find(names, split, folder)


def look_for(names: Sequence[str], split: str, folder: Path, endings: Sequence[str] = ENDINGS) -> Path | None:
    """`find`, but None where no file has such a name. Raises `DataError` for a folder or a broken link."""
    for candidate in _paths(names, split, endings):
        path = folder / candidate
        if (noted := _noted.get()) is not None and path not in noted:
            noted[path] = hash_or_none(path)
        if os.path.isfile(path):
            return path
        if os.path.lexists(path):
            raise refused(path, "", "this is no file but a folder, a device or a link that leads nowhere")
    return None


def _paths(names: Sequence[str], split: str, endings: Sequence[str]) -> list[str]:
    return [f"{name}{joint}{split}{ending}" for name in dict.fromkeys(names) for joint in "_/" for ending in endings]


@contextmanager
def at(source: str | Path, where: str) -> Iterator[None]:
    """Adds the name of the file or dataset, and the place in it, to an error about a row."""
    try:
        yield
    except DataError as error:
        raise refused(source, where, error) from None


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row with its place: "row 3" of a list (from 1), "row NAME" of an object, "line 3" of all others."""
    if path.suffix in (".csv", ".tsv"):
        yield from _table(path)
        return
    start = ""
    for piece in pieces(path):
        start = (start + piece).lstrip(" \t\r\n")
        if len(start) > LONGEST:
            break
    is_document = start.startswith("[") or _is_object_of_rows(start)
    yield from _document(path) if is_document else _json_lines(path)


# ---- tables -----------------------------------------------------------------------------------------------------


_MARK = '"'
_STRAY = "a quotation mark stands in a cell that begins without one; put that cell in marks, and double each in it"
_DOUBTFUL = "{} may be a quoted cell or a text with quotation marks; quote all cells, or save the table as JSON"

Table = list[tuple[str, dict[str, str]]]


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    if path.suffix == ".csv":
        return _cells(path, ",")
    header = next(filter(str.strip, lines(path, any_newline=True)), "")
    return _cells(path, "\t") if _MARK in header else iter(_raw_or_quoted(path))


def _raw_or_quoted(path: Path) -> Table:
    raw, not_raw = _read_or_fault(path, quoting=csv.QUOTE_NONE)
    if not not_raw and not any(_MARK in cell for _, row in raw for cell in row.values()):
        return raw
    quoted, not_quoted = _read_or_fault(path)
    if not_raw and not_quoted:
        raise not_raw
    if not_raw:
        for where, row in quoted:
            if doubtful := next((cell for cell in row.values() if "\t" in cell and "\n" in cell), None):
                raise refused(path, where, _DOUBTFUL.format(repr(doubtful)))  # or two stray marks have joined rows
        return quoted
    if not_quoted or len(quoted) < len(raw):
        return raw
    if _explains_the_marks(raw):
        return quoted
    for (where, row), (_, other) in zip(raw, quoted, strict=True):
        if row != other:
            raise refused(path, where, _DOUBTFUL.format(next(cell for cell in row.values() if cell[:1] == _MARK)))
    return raw


def _read_or_fault(path: Path, **layout: Any) -> tuple[Table, DataError | None]:
    try:
        return list(_cells(path, "\t", **layout)), None
    except DataError as fault:
        return [], fault


def _explains_the_marks(raw: Table) -> bool:
    """Whether quoted cells explain the marks of a table that can be read in both ways."""
    for name in raw[0][1]:
        cells = [row[name] for _, row in raw if row[name]]
        in_marks = [cell for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == _MARK]
        if any(2 * _MARK in cell[1:-1] for cell in in_marks) or (len(in_marks) == len(cells) > 1):
            return True
    return False


def _cells(path: Path, delimiter: str, quoting: int = csv.QUOTE_MINIMAL) -> Iterator[tuple[str, dict[str, str]]]:
    records = _records(path, delimiter, quoting)
    where, header = next(records, ("", []))
    if repeated := {name for name in header if header.count(name) > 1}:
        raise refused(path, where, f"the column {min(repeated)!r} is twice in the header")
    for where, cells in records:
        if len(cells) != len(header):
            raise refused(path, where, f"there are {len(cells)} cells, expected {len(header)} as in the header")
        yield where, dict(zip(header, cells, strict=True))


def _records(path: Path, delimiter: str, quoting: int) -> Iterator[tuple[str, list[str]]]:
    """The cells of each row, the header first, and where it ends. Refuses stray marks, which the csv module accepts."""
    cell = rf'(?:"(?:[^"]|"")*+"|[^"{delimiter}]*+)'
    well_quoted = re.compile(rf"{cell}(?:{delimiter}{cell})*+\n?")
    record: list[str] = []  # the lines of the row that is being read

    def recorded() -> Iterator[str]:
        for line in lines(path, any_newline=True):
            record.append(line + "\n")
            yield record[-1]

    reader = csv.reader(recorded(), strict=True, delimiter=delimiter, quoting=quoting)
    try:
        for cells in reader:
            text = "".join(record)
            record.clear()
            if quoting != csv.QUOTE_NONE and _MARK in text and not well_quoted.fullmatch(text):
                raise csv.Error(_STRAY)
            if cells:
                yield f"line {reader.line_num}", cells
    except csv.Error as error:
        reason = str(error)
        if "field limit" in reason or "end of data" in reason:
            reason = f"a cell that began in quotation marks has no end here, or it is too long ({reason})"
        raise refused(path, f"line {reader.line_num}", reason) from None


# ---- JSON -------------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            try:
                yield f"line {number}", loads(line)
            except Fault as fault:
                raise refused(path, f"line {number}", fault) from None


def _is_object_of_rows(text: str) -> bool:
    """Whether this begins one {"0": {...}, "1": {...}}, and not JSON lines whose first column is an object."""
    if not _OBJECT_OF_ROWS.match(text):
        return False
    line, _, more = text.partition("\n")
    try:
        first = loads(line)
    except Fault as fault:
        return not more.strip() or fault.place >= len(line.rstrip())  # it continues on the next line
    return not more.strip() and all(isinstance(row, dict) for row in first.values())


def _document(path: Path) -> Iterator[tuple[str, Any]]:
    """Each value of a list or an object, with its place, "row 1" or "row NAME". Nothing may follow the end."""
    text, row, number, names = "".join(pieces(path, most=LARGEST)), "", 0, set()

    def after(character: str, place: int) -> int:
        """The place after a character that must be there, and after the white space around it."""
        place = _BLANK.match(text, place).end()
        if not text.startswith(character, place):
            raise Fault(NOT_JSON.format(f"expecting {character!r}"), place)
        return _BLANK.match(text, place + 1).end()

    try:
        opening = text[_BLANK.match(text).end()]
        closing = {"[": "]", "{": "}"}[opening]
        place = after(opening, 0)
        more = not text.startswith(closing, place)
        while more:
            name = number = number + 1
            if opening == "{":
                if not text.startswith(_MARK, place):
                    raise Fault(NOT_JSON.format("expecting a name in quotation marks"), place)
                name, end = decode(text, place)
                if name in names:
                    raise Fault(f"the name {name!r} is twice in one object", place)
                names.add(name)
                place = after(":", end)
            row = f"row {name}"
            value, end = decode(text, place)
            if end - place > LONGEST:
                raise Fault(TOO_LONG.format(LONGEST), place)
            yield row, value
            place = _BLANK.match(text, end).end()
            if more := text.startswith(",", place):
                place = after(",", place)
        place = after(closing, place)
        if place < len(text):
            raise Fault(NOT_JSON.format("more after its end"), place)
    except Fault as fault:
        line = text.count("\n", 0, fault.place) + 1
        raise refused(path, f"{row}, line {line}".removeprefix(", "), fault) from None
