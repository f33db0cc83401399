"""The scores of single items: out of an evaluation's rows, as tensors of a checkpoint, and as a table.

A tensor (items,), float32, has the values of one metric in one test of a client. Its name is a JSON list of the KEYS.
Metrics and units are the history's, whose value is the mean over the items; an item's accuracy or style is 0 or 100.
Items of a class also have an accuracy where the history has another metric (CoLA). An item's number is its place, from
0, among the client's items with this task, split and metric: the same in all rounds, and in every run on the same data.
"""

import json
from typing import TYPE_CHECKING

import torch

from ..core.state import State

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("round", "client", "task", "split", "metric")


def taken_out(rows: list[dict]) -> tuple[list[dict], State]:
    """The rows for the history, and the rows whose value is a list as tensors by name."""
    listed: dict[str, list[float]] = {}
    for row in rows:
        if isinstance(row["value"], list):  # a test may have one task twice, as choices and as texts
            listed.setdefault(json.dumps([row[key] for key in KEYS]), []).extend(row["value"])
    tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in listed.items()}
    return [row for row in rows if not isinstance(row["value"], list)], tensors


def table_of(tensors: State) -> "pd.DataFrame":
    """One row for each item and metric, with the columns round, client, task, split, metric, item, value."""
    import pandas as pd

    rows = [
        (*json.loads(name), item, value)
        for name in sorted(tensors, key=json.loads)
        for item, value in enumerate(tensors[name].tolist())
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "item", "value"])
