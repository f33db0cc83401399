"""A run's whole rounds on disk: one file each, that needs no other file and notices its own damage.

round_NNNN.safetensors holds X (N, P) after the round, M (rounds, N, N) so far, the server's own tensors, and the
history (CSV, as bytes); in its notes the config and the manifest. So a run goes on from any one of them, and the newest
whole one counts, whatever became of the files beside it. Nothing is unpickled.
"""

import io
import json
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from .config import RunConfig
from .errors import DamageWarning, FedReFTError
from .interventions import State
from .states import Spec, is_finite, load_tensors, save_tensors

HISTORY = ("round", "client", "task", "split", "metric", "value", "uplink_bytes", "downlink_bytes", "seconds", "note")
# What every manifest says.
NEEDED = {
    "round", "rounds", "checkpoint", "code", "backbone", "data", "dtype", "spec", "trainable_params", "head_params",
}  # fmt: skip
SERVER = "server."  # before the names of the server's own tensors
KEPT = 2  # rounds: the last one, and the one before in case the last is damaged


@dataclass(frozen=True)
class Saved:
    """A whole round: states X (N, P), mixing matrices M (rounds, N, N), the history so far, the server's tensors."""

    config: RunConfig
    manifest: dict
    history: pd.DataFrame
    X: Tensor
    M: Tensor
    memory: State = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        return Spec.of({name: tuple(shape) for name, shape in self.manifest["spec"]})

    @cached_property  # it goes into the checkpoint and, for the reader, beside it
    def csv(self) -> str:
        """The history as text; `_history_from` gives it back to the bit."""
        return self.history.to_csv(index=False, na_rep="nan")


def name_of(t: int) -> str:
    return f"round_{t:04d}.safetensors"


def write(folder: Path, saved: Saved) -> None:
    """Write a round into a run's folder. Earlier ones go when it is whole, but for the last before it."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    t = saved.manifest["round"]
    if t == 0:  # a run that starts again is not to be taken for the one that was there
        for path in _newest_first(folder):
            path.unlink()
    text = saved.csv.encode()
    tensors = {"X": saved.X, "M": saved.M, "history": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    tensors |= {SERVER + name: tensor for name, tensor in saved.memory.items()}
    notes = {"config": saved.config.model_dump_json(), "manifest": json.dumps(saved.manifest)}
    save_tensors(tensors, checkpoints / name_of(t), notes)
    for path in _newest_first(folder)[KEPT:]:
        path.unlink()


def newest(folder: Path, config: RunConfig | None = None) -> Saved | None:
    """The newest whole round of a run's folder; None where there is none at all, so far.

    Damaged ones are passed over, with a DamageWarning, and so are those of another config than the one given, as long
    as one of that config is left. Raises FedReFTError where only damaged ones are left.
    """
    passed, foreign = [], None
    for path in _newest_first(folder):
        try:
            saved = read(path)
        except FedReFTError as error:
            passed.append(str(error))
            continue
        if config is not None and saved.config != config:
            passed.append(f"{path} belongs to another run")
            foreign = foreign or saved
            continue
        if passed:
            warnings.warn(f"{'; '.join(passed)}: round {saved.manifest['round']} is used", DamageWarning, stacklevel=2)
        return saved
    if passed and foreign is None:
        raise FedReFTError(f"{'; '.join(passed)}: no whole round is left in {folder}, delete it and run again")
    return foreign


def read(path: Path) -> Saved:
    """One checkpoint. Raises FedReFTError where it is damaged, or no checkpoint of this version."""
    tensors, notes = load_tensors(path)
    # Copies begin at a round address, as those of a run that was never stopped do: last bits of products depend on it.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        config, manifest = RunConfig(**json.loads(notes["config"])), json.loads(notes["manifest"])
        X, M, text = tensors.pop("X"), tensors.pop("M"), bytes(tensors.pop("history").numpy())
        memory = {name.removeprefix(SERVER): tensor for name, tensor in tensors.items()}
        saved = Saved(config, manifest, _history_from(text), X, M, memory)
        fits = not (NEEDED - set(manifest)) and X.ndim == 2 and X.shape[1] == saved.spec.size
    except (KeyError, TypeError, ValueError):  # whole, but of another version or another program
        fits = False
    if not fits:
        raise FedReFTError(f"{path} is no checkpoint of this version of the library")
    if not is_finite(X):
        raise FedReFTError(f"{path} holds states that are not finite")
    return saved


def history_of(rows: list[dict]) -> pd.DataFrame:
    """Rows as a table with every column of HISTORY, the ones that a row does not speak of filled in."""
    table = pd.DataFrame(rows, columns=list(HISTORY))
    filled = {"task": "", "note": "", "uplink_bytes": 0, "downlink_bytes": 0, "seconds": 0.0}
    for name, value in filled.items():
        table[name] = table[name].where(table[name].notna(), value)
    return table.astype({"round": int, "value": float, "uplink_bytes": int, "downlink_bytes": int, "seconds": float})


def _history_from(csv: bytes) -> pd.DataFrame:
    exactly = {"value": float, "seconds": float}  # Python's own reading gives back the bits that were written
    return history_of(pd.read_csv(io.BytesIO(csv), keep_default_na=False, converters=exactly).to_dict("records"))


def _newest_first(folder: Path) -> list[Path]:
    paths = (folder / "checkpoints").glob("round_*.safetensors")
    return sorted(paths, key=lambda path: (len(path.name), path.name), reverse=True)
