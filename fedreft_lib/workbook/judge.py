"""Files for a judge model: the instructions, and the generated responses.

A judge grades the paper's instruction tuning (AlpacaEval: GPT-4 prefers one of two responses). Such a win rate is not
possible here, since it needs a paid service or a model much larger than the graded one.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DataError
from ..files import write_text

COLUMNS = ("instruction", "output", "generator", "dataset", "reference")


def export(rows: Iterable[Mapping[str, str]], path: Path) -> None:
    """Write rows of `COLUMNS` as the JSON list that AlpacaEval takes as --model_outputs.

    instruction: the prompt; output: the generated response; generator: the name of the run or client; dataset: the
    task; reference (our column): the response of the dataset. AlpacaEval takes the other side of a comparison as a
    second file of this form (--reference_outputs): export the same instructions with the references, or with another
    run, as output. Raises DataError for a row without one of the columns, or for two outputs of one generator to the
    same instruction, which AlpacaEval cannot distinguish.
    """
    rows = [dict(row) for row in rows]
    seen = set()
    for number, row in enumerate(rows, start=1):
        missing = [column for column in COLUMNS if column not in row]
        if missing:
            raise DataError(f"Row {number} for the judge has no {' and no '.join(missing)}; it needs {COLUMNS}.")
        key = row["generator"], row["instruction"]
        if key in seen:
            raise DataError(
                f"Row {number} for the judge is a second output of {key[0]!r} to {key[1]!r}: keep one of them."
            )
        seen.add(key)
    write_text(path, json.dumps([{c: row[c] for c in COLUMNS} for row in rows], indent=1, ensure_ascii=False) + "\n")
