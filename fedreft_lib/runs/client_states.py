"""The states of many clients: N rows that read like X (N, P), where only the rows that are asked for take memory.

A client that no round has changed has the common start. The others have their own row, in memory or in a checkpoint of
the run. So clients that are never drawn cost nothing, and a federation may be larger than memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

TENSOR = "X"  # the name of the rows in a checkpoint


@dataclass(frozen=True)
class OnDisk:
    """Row `index` of the checkpoint of round `round`."""

    path: Path
    round: int
    index: int


@dataclass(frozen=True)
class ClientStates:
    """common (P,): the start of all clients. own: the rows of changed clients, by number (from 0). clients: N."""

    common: Tensor
    clients: int
    own: Mapping[int, Tensor | OnDisk] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.clients

    def __iter__(self) -> Iterator[Tensor]:
        return (self[k] for k in range(self.clients))

    def __getitem__(self, who: int | Sequence[int]) -> Tensor:
        """The row (P,) of one client, or the rows (n, P) of several; copies."""
        if isinstance(who, int):
            return self[[who]][0]
        rows = torch.empty(len(who), len(self.common))
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for place, k in enumerate(who):
            found = self.own.get(k, self.common)
            if isinstance(found, OnDisk):
                wanted.setdefault(found.path, []).append((place, found.index))
            else:
                rows[place] = found
        for path, pairs in wanted.items():  # each file is mapped only while it is open
            with safe_open(path, framework="pt") as file:
                part = file.get_slice(TENSOR)
                for place, index in pairs:
                    rows[place] = part[index]
        return rows

    def index_copy(self, dim: int, who: Tensor, rows: Tensor) -> "ClientStates":
        """As `Tensor.index_copy` along dimension 0: new rows (n, P) at the places `who` (n,), the others unchanged."""
        assert dim == 0
        return ClientStates(self.common, self.clients, {**self.own, **dict(zip(who.tolist(), rows, strict=True))})

    @property
    def all(self) -> Tensor:
        """X (N, P), in memory."""
        return self[range(self.clients)]
