"""Files that a node keeps on its own disk between messages: Flower may start a new process for each message.

start.safetensors              the state that all clients begin with, where the seed does not determine it
after_round_NNNN.safetensors   its state after a round in which it received an answer; the last two are kept
learned.safetensors            its state before the current round, and what it learned in it

The server identifies the state that it expects by a hash of its sent tensors. So the node finds the correct state even
where the server went back to its last checkpoint, or where an answer was lost.
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
        """Its states after rounds before `before`, the newest first, then the start. Skips damaged ones with a
        DamageWarning."""
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
        """Stores its state after round t. If there are later states, the run went back, and they are deleted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors({"row": row}, self.folder / f"after_round_{t:04d}.safetensors")
        there = self._rounds()
        for other in sorted(there):
            if other > t or other in sorted(n for n in there if n <= t)[:-KEPT]:
                there[other].unlink()

    def keep_learned(self, before: Tensor, learned: Tensor | None) -> None:
        """Stores both rows. learned: None where the update is unusable."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = {"before": before} | ({} if learned is None else {"learned": learned})
        save_tensors(rows, self.folder / "learned.safetensors")

    def learned(self, refused: bool) -> Tensor:
        """What it learned in its last round of training, or its state before, if the update was refused.

        Raises FedReFTError where it has not trained.
        """
        return load_tensors(self.folder / "learned.safetensors")[0]["before" if refused else "learned"]

    def _rounds(self) -> dict[int, Path]:
        return {int(path.stem.rsplit("_", 1)[1]): path for path in self.folder.glob("after_round_*.safetensors")}
