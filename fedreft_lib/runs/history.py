"""The rows of a run's history: complete, as CSV text and back to the bit, and as a table for whoever reads a run.

Runs themselves keep rows. pandas, which takes 70 MB and 0.2 seconds of every process that imports it, is imported where
somebody wants a table.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

TYPES: Mapping[str, Callable] = {
    "round": int, "client": str, "task": str, "split": str, "metric": str, "value": float, "uplink_bytes": int,
    "downlink_bytes": int, "seconds": float, "note": str,
}  # fmt: skip
HISTORY = tuple(TYPES)
MISSING = {"task": "", "note": "", "uplink_bytes": 0, "downlink_bytes": 0, "seconds": 0.0}  # what may be left out


def complete(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with every column of HISTORY, in its type. Raises KeyError for a row without one that is not in MISSING."""
    return [
        {name: kind(MISSING[name] if row.get(name) is None else row[name]) for name, kind in TYPES.items()}
        for row in rows
    ]


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Complete rows as text, with the column names first; `rows_of` restores them to the bit."""
    text = io.StringIO()
    minimal = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # else a carriage return would end the row
    minimal.writerow(HISTORY)
    for row in rows:
        values = [row[name] for name in HISTORY]
        (quoted if any("\r" in value for value in values if isinstance(value, str)) else minimal).writerow(values)
    return text.getvalue()


def rows_of(text: str) -> list[dict[str, Any]]:
    """The inverse of `csv_of`. Raises ValueError or KeyError for another text."""
    if len(text) > csv.field_size_limit():  # 131,072 characters at first, and a note may quote an error of any length
        csv.field_size_limit(len(text))
    try:
        names, *lines = csv.reader(io.StringIO(text, newline=""))
    except csv.Error as error:
        raise ValueError(f"no history: {error}") from error
    return complete([dict(zip(names, line, strict=True)) for line in lines])


def history_of(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Rows as a table with the columns of HISTORY."""
    import pandas as pd

    types = {name: kind for name, kind in TYPES.items() if kind is not str}
    return pd.DataFrame(complete(rows), columns=list(HISTORY)).astype(types)
