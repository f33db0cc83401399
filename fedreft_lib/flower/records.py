"""Messages as Flower's records: tensors in an array record, all other values as one JSON text. No pickle."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from ..core.state import State
from . import ARRAYS, VALUES


def packed(values: Mapping[str, Any], tensors: State | None = None) -> RecordDict:
    arrays = ArrayRecord({name: Array(tensor.detach().cpu().contiguous()) for name, tensor in (tensors or {}).items()})
    return RecordDict({ARRAYS: arrays, VALUES: ConfigRecord({"json": json.dumps(values)})})


def values(records: RecordDict) -> dict[str, Any]:
    return json.loads(records[VALUES]["json"])


def tensors(records: RecordDict) -> State:
    # Copies: the received memory is read-only.
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in records[ARRAYS].items()}
