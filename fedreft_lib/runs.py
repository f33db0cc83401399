"""A run's folder: what is in it, how it is written so that nothing is torn, and how runs are read back and compared.

checkpoints/round_NNNN.safetensors   a whole round each, see checkpoints.py; the last two are kept
config.json                          the RunConfig
history.csv                          long form: round, client, split, metric, value, bytes, seconds
manifest.json                        written last each round: which round is whole, hashes, versions, code, data

The last three are copies, for the reader, of what the newest checkpoint holds; damaged ones are written anew.
"""

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from . import checkpoints, hidden_cache
from .checkpoints import NEEDED, Saved, history_of
from .client_states import ClientStates
from .config import RunConfig
from .cuts import Cuts
from .environment import BITS, differences, environment
from .errors import ConfigError, DamageWarning, ElsewhereWarning, FedReFTError
from .identity import backbone_identity, may_be_same
from .interventions import State
from .listening import Listening
from .metrics import PRIMARY
from .states import Spec, write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from .partition import ClientData
    from .steering import SteeredModel
    from .ways import Ways

# The columns of results.csv: one row per (run, round, client, metric).
RESULTS = (
    "experiment", "benchmark", "task", "setup", "model", "method", "aggregation", "mixing", "intervention", "rank",
    "layers", "clients", "rounds", "seed", "round", "client", "split", "metric", "value", "trainable_params",
    "head_params", "uplink_bytes", "downlink_bytes", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run, finished or not: its config, history, last states with their spec, and who listened to whom."""

    config: RunConfig
    history: pd.DataFrame
    clients: ClientStates
    spec: Spec
    listening: Sequence[Listening]
    manifest: dict
    folder: Path | None
    memory: State = field(default_factory=dict)  # what the server keeps between rounds, where a method needs that

    @cached_property
    def states(self) -> Tensor:
        """X (N, P), all states in memory; `clients` gives one at a time."""
        return self.clients.all

    @cached_property
    def mixing_matrices(self) -> Tensor:
        """M (rounds, N, N)"""
        n = len(self.clients)
        return torch.stack([each.among(n) for each in self.listening]) if self.listening else torch.zeros(0, n, n)

    @property
    def cut(self) -> dict[str, Cuts]:
        """How many texts of each client did not fit into max_length, see cuts.py."""
        return self.manifest.get("cut", {})

    @property
    def results(self) -> pd.DataFrame:
        """The history with the columns of results.csv."""
        config = self.config
        table = self.history.assign(
            experiment=config.experiment, benchmark=config.benchmark, setup=config.setup, model=config.backbone,
            method=config.method, aggregation=config.aggregation if config.method == "fedreft" else "none",
            mixing=config.mixing_name, intervention=config.intervention, rank=config.rank,
            layers=config.layers if isinstance(config.layers, str) else " ".join(map(str, config.layers)),
            clients=config.clients, rounds=config.rounds, seed=config.seed,
            trainable_params=self.manifest["trainable_params"], head_params=self.manifest["head_params"],
        )  # fmt: skip
        return table[list(RESULTS)]

    def accuracy(self, round: int | None = None, split: str = "test") -> pd.Series:
        """Accuracy (or the task's own primary metric) in percent of each client after a round (default: the last)."""
        chosen = self.history[self.history["metric"].isin(PRIMARY) & (self.history["split"] == split)]
        last = chosen["round"].max() if round is None else round
        return chosen[chosen["round"] == last].set_index("client")["value"]


class Store:
    """Reads and writes one run's folder; with no folder, keeps nothing."""

    def __init__(self, config: RunConfig, folder: str | Path | None):
        self.config = config
        self.folder = None if folder is None else Path(folder)
        self.manifest: dict = {}
        self.saved: Saved | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Reads the folder and keeps other processes out of it; the death of this one lets go.

        Raises FedReFTError where another process is in it, ConfigError where it holds a run of another config.
        """
        if self.folder is None:
            yield
            return
        lock = FileLock(self.folder / ".lock", blocking=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise FedReFTError(
                f"{self.folder} is in use by another process: wait until that has ended, or choose another folder"
            ) from None
        except OSError as error:
            raise FedReFTError(f"{self.folder} cannot be written to ({error}): choose another folder") from None
        try:
            self.saved = self._found()
            yield
        finally:
            lock.release()

    def _found(self) -> Saved | None:
        """The last whole round; None where there is none, with a warning where that is for damage."""
        try:
            saved = _saved(self.folder, self.config)
        except FedReFTError as error:
            warnings.warn(f"{error}; this run starts again", DamageWarning, stacklevel=5)
            return None
        if saved and saved.config != self.config:
            theirs, ours = saved.config, self.config
            name = next(n for n in RunConfig.model_fields if getattr(theirs, n) != getattr(ours, n))
            raise ConfigError(
                f"{self.folder} holds a run with another {name} ({getattr(theirs, name)!r}, not "
                f"{getattr(ours, name)!r}): choose another folder or delete this one"
            )
        return saved

    def finished(self, questions: "Callable[[], str]", *, fixed: bool = False) -> Run | None:
        """The run, if the folder holds it whole and this code made it from these questions and this backbone.

        questions: their fingerprint; not asked for where they are `fixed`, which is that they follow from code,
        versions and config, and those are the same. With source="hub" they are taken to be as they were: the hub would
        have to be asked, and a finished run can be read without a network. So it is with a backbone of the hub that is
        no longer on this machine; of one that is, the commit counts. Raises FedReFTError for a backbone's folder that
        is gone; `load_run` reads the run without it.
        """
        saved = self.saved
        if saved is None or saved.manifest["round"] < self.config.rounds:
            return None
        if saved.manifest["code"] != environment()["code"]:
            return None
        if not may_be_same(saved.manifest["backbone"], backbone_identity(self.config.backbone)):
            return None
        unasked = self.config.source == "hub" or (fixed and not differences(saved.manifest))
        if not unasked and saved.manifest["data"] != questions():
            return None
        self._write_copies(saved)
        os.utime(self.folder / "manifest.json")  # says that the run is in use, see batch.set_aside
        _warn_of_elsewhere([saved], self.folder)
        return _as_run(saved, self.folder)

    def describe(
        self,
        model: "SteeredModel",
        questions: str,
        trained: tuple[str, ...],
        engine: str,
        ways: "Ways",
        cut: dict[str, Cuts],
    ) -> None:
        """Note what the run depends on besides its config. questions: see `data_fingerprint`; `trained` names the
        tensors that a client trains; ways: in which the longest text is read; cut: what of the texts is not."""
        backbone = model.backbone
        self.spec = model.spec
        sizes = {name: math.prod(shape) for name, shape in self.spec.shapes}
        self.manifest = {
            **environment(backbone.device),
            "backbone": backbone.identity,
            "weights": backbone.fingerprint,
            "data": questions,
            "dtype": str(backbone.dtype),
            "reading": str(ways),
            "cut": cut,
            "cache": hidden_cache.offer(model, self.config, ways),
            "seed": self.config.seed,
            "engine": engine,
            "adapted": model.adapter.adapted,
            "trainable_params": sum(sizes[name] for name in trained),
            "head_params": sum(sizes[name] for name in model.head_names),
            "spec": [[name, list(shape)] for name, shape in self.spec.shapes],
        }

    def afresh(self, start: ClientStates) -> Saved:
        """Nothing yet, at `start`."""
        return Saved(self.config, {**self.manifest, "round": 0}, history_of([]), start)

    def resume(self, start: ClientStates) -> Saved:
        """The last whole round; round 0 at `start` where nothing usable is there, with a warning if that loses some."""
        if self.saved is None:
            return self.afresh(start)
        found, here = self.saved.manifest, self.manifest
        keys = ("code", "backbone", "weights", "data", "dtype", "spec")
        other = [key for key in keys if found.get(key) != here[key]]
        if other:
            if found["round"]:
                lost = f"{found['round']} rounds in {self.folder} were made with other {', '.join(other)}"
                warnings.warn(f"{lost}: they are computed again", ElsewhereWarning, stacklevel=3)
            return self.afresh(start)
        changed = [f"{key} {found.get(key)} (here {here[key]})" for key in BITS if found.get(key) != here[key]]
        if changed and found["round"] < self.config.rounds:
            warnings.warn(
                f"the rounds so far in {self.folder} were made with {', '.join(changed)}: the rest may differ in bits",
                ElsewhereWarning, stacklevel=3,
            )  # fmt: skip
        return self.saved

    def save(
        self, t: int, states: ClientStates, listening: Sequence[Listening], rows: list[dict], memory: State
    ) -> ClientStates:
        """Write round t; until its checkpoint is whole, the round before it stays the valid one.

        Returns the states, those in memory that are not on the disk by now.
        """
        self.manifest |= {"round": t, "rounds": self.config.rounds, "checkpoint": checkpoints.name_of(t)}
        self.manifest["set_aside"] = [
            {"round": row["round"], "client": row["client"], "reason": row["note"]}
            for row in rows if row["metric"] == "admitted" and row["value"] == 0
        ]  # fmt: skip
        if self.folder is None:
            return states
        saved = Saved(self.config, self.manifest, history_of(rows), states, listening, memory)
        try:
            states = checkpoints.write(self.folder, saved)
            self._write_copies(saved)
        except OSError as error:
            before = f"round {t - 1} stays" if t else "nothing is lost"
            raise FedReFTError(
                f"round {t} could not be written to {self.folder} ({error}), {before}: mend that and run again"
            ) from error
        return states

    def _write_copies(self, saved: Saved) -> None:
        """config.json, history.csv and manifest.json of a checkpoint, those that are not there as they shall be."""
        copies = {
            "config.json": saved.config.model_dump_json(indent=1),
            "history.csv": saved.csv,
            "manifest.json": json.dumps(saved.manifest, indent=1),
        }
        for name, text in copies.items():
            path = self.folder / name
            if not path.exists() or path.read_bytes() != text.encode():
                write_text(path, text)

    def run(self, states: ClientStates, listening: Sequence[Listening], rows: list[dict], memory: State) -> Run:
        return Run(self.config, history_of(rows), states, self.spec, listening, self.manifest, self.folder, memory)


def load_run(folder: str | Path) -> Run:
    """A run as its folder holds it, up to its last whole round. Raises FedReFTError where there is none.

    Warns (ElsewhereWarning) where it was made with other code or versions than those here, and (DamageWarning) where
    the newest checkpoint is damaged and the one before it is read. What is not looked at is whether the same data and
    weights could be had here: `run` does that when it continues or returns the run.
    """
    run = read_run(folder)
    _warn_of_elsewhere([run], run.folder)
    return run


def read_run(folder: str | Path) -> Run:
    """`load_run` without a look at where the run was made."""
    folder = Path(folder)
    saved = _saved(folder, _config(folder))
    if saved is None:
        raise FedReFTError(f"there is no run in {folder}: it has no checkpoint")
    return _as_run(saved, folder)


def load_runs(folder: str | Path) -> list[Run]:
    """Every run below a folder, in the order of their names; one warning for all that were made elsewhere."""
    found = [read_run(path.parent) for path in sorted(Path(folder).glob("*/manifest.json"))]
    _warn_of_elsewhere(found, folder)
    return found


def _as_run(saved: Saved, folder: Path) -> Run:
    states, listening = saved.states, saved.listening
    return Run(saved.config, saved.history, states, saved.spec, listening, saved.manifest, folder, saved.memory)


def _warn_of_elsewhere(found: Sequence[Run | Saved], folder: str | Path) -> None:
    elsewhere = sorted({", ".join(differences(each.manifest)) for each in found} - {""})
    if elsewhere:
        warnings.warn(f"{folder} was made with {'; '.join(elsewhere)}", ElsewhereWarning, stacklevel=3)


def _saved(folder: Path, config: RunConfig | None) -> Saved | None:
    """The newest whole round; of its manifest the copy counts, where that is whole and speaks of this round."""
    saved = checkpoints.newest(folder, config)
    copy = _json(folder / "manifest.json")
    if saved is None or not isinstance(copy, dict) or NEEDED - set(copy):
        return saved
    speaks_of_it = all(copy[key] == saved.manifest[key] for key in ("checkpoint", "spec"))
    return replace(saved, manifest=copy) if speaks_of_it else saved


def _config(folder: Path) -> RunConfig | None:
    """What config.json says; None where it is gone or damaged."""
    try:
        return RunConfig(**_json(folder / "config.json"))
    except (TypeError, ConfigError):
        return None


def _json(path: Path) -> Any:
    """What is in a file; None where it is gone or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def results_of(runs: list[Run]) -> pd.DataFrame:
    """All histories as one table with the columns of results.csv."""
    tables = [run.results for run in runs]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(RESULTS))


def data_fingerprint(questions: "list[ClientData]") -> str:
    """A hash of everybody's items: of one for each client, so that it can be told without them."""
    return joint_fingerprint(client.fingerprint for client in questions)


def joint_fingerprint(clients: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(clients).encode()).hexdigest()[:16]
