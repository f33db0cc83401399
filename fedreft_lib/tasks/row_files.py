"""Files of rows: JSON (a list, an object of rows), JSON lines, CSV and TSV with a header, in UTF-8."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedreft_lib.errors import DataError

ENDINGS = (".json", ".jsonl", ".csv", ".tsv")


def find(names: Sequence[str], split: str, folder: Path, endings: Sequence[str] = ENDINGS) -> Path:
    """The file of a task that goes by any of `names`; raises `DataError` that says how it would be called."""
    candidates = [
        f"{name}{joint}{split}{ending}" for name in dict.fromkeys(names) for joint in ("_", "/") for ending in endings
    ]
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(
        f"There is no {split} file of {names[0]} in {folder}: it would be called {' or '.join(candidates)}."
    )


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row with where it stands: "row 3" of a list (from 1) or object, "line 3" of JSON lines and tables."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: this is not UTF-8 text; save the file as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    if path.suffix in (".csv", ".tsv"):
        yield from _table(path, text)
    elif text.lstrip().startswith("["):
        for number, row in enumerate(_parse(text, path, first_line=1), start=1):
            yield f"row {number}", row
    elif named := _object_of_rows(text):
        for name, row in named.items():
            yield f"row {name}", row
    else:
        for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a text may hold U+2028
            if line.strip():
                yield f"line {number}", _parse(line, path, first_line=number)


def _table(path: Path, text: str) -> list[tuple[str, dict[str, str]]]:
    if path.suffix == ".csv":
        return _cells(path, text, delimiter=",")
    try:
        return _cells(path, text, delimiter="\t")
    except DataError:  # many .tsv files, GLUE's own among them, quote nothing and have quotation marks in their texts
        return _cells(path, text, delimiter="\t", quoting=csv.QUOTE_NONE)


def _cells(path: Path, text: str, **layout: Any) -> list[tuple[str, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **layout)
    found = []
    try:
        header = next(reader, [])
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise csv.Error(f"there are {len(cells)} cells, expected {len(header)} as in the header")
            found.append((f"line {reader.line_num}", dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from None
    return found


def _object_of_rows(text: str) -> dict[str, Any] | None:
    """{"0": {...}, "1": {...}}, or None for a text that is anything else."""
    with suppress(json.JSONDecodeError):
        whole = json.loads(text)
        if isinstance(whole, dict) and whole and all(isinstance(row, dict) for row in whole.values()):
            return whole
    return None


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}, line {line}: this is not JSON ({error.msg}, column {error.colno}).") from None
