"""What a node keeps on its own disk between messages, for Flower may start a process for each of them.

start.safetensors              the state that all begin with, where that is not the seed's alone
after_round_NNNN.safetensors   its state after a round in which it was answered; the last two of those
learned.safetensors            what it began the present round with, and what it has learned in it

The server names the state that it means by a hash of the tensors that are sent. So a server that goes back to its last
checkpoint, or an answer that was lost on its way, finds the node with the state that it had then.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ..errors import DamageWarning, FedReFTError
from ..files import load_tensors, save_tensors

KEPT = 2
START = "start.safetensors"


class NodeFiles:
    """The files of one client of one run. Rows are states, (P,)."""

    def __init__(self, folder: Path):
        self.folder = folder

    def rows(self, before: int) -> Iterator[Tensor]:
        """Its states after rounds before `before`, the newest first, and the start; damaged ones are passed over with a
        warning."""
        paths = [path for t, path in sorted(self._rounds().items(), reverse=True) if t < before]
        for path in (*paths, self.folder / START):
            if path.exists():
                try:
                    yield load_tensors(path)[0]["row"]
                except FedReFTError as error:
                    warnings.warn(f"{error}: an older state is looked for", DamageWarning, stacklevel=2)

    def keep_start(self, row: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors({"row": row}, self.folder / START)

    def keep(self, t: int, row: Tensor) -> None:
        """Its state after round t; what is known of later rounds is of a run that went back, and goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors({"row": row}, self.folder / f"after_round_{t:04d}.safetensors")
        there = self._rounds()
        for other in sorted(there):
            if other > t or other in sorted(n for n in there if n <= t)[:-KEPT]:
                there[other].unlink()

    def keep_learned(self, before: Tensor, learned: Tensor | None) -> None:
        """learned: None where nobody may take it in."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = {"before": before} | ({} if learned is None else {"learned": learned})
        save_tensors(rows, self.folder / "learned.safetensors")

    def learned(self, refused: bool) -> Tensor:
        """What it learned in the last round in which it trained, or, where that was refused, what it had before.
        Raises FedReFTError where it has not trained."""
        return load_tensors(self.folder / "learned.safetensors")[0]["before" if refused else "learned"]

    def _rounds(self) -> dict[int, Path]:
        return {int(path.stem.rsplit("_", 1)[1]): path for path in self.folder.glob("after_round_*.safetensors")}
