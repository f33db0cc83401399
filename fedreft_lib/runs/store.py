"""A run's folder: its files, and how it is written so that a run can stop at any moment and continue.

checkpoints/round_NNNN.safetensors   one complete round each, see checkpoints.py; the last two are kept
config.json                          the RunConfig
history.csv                          long form: round, client, split, metric, value, bytes, seconds
manifest.json                        written last in each round: the complete round, hashes, versions, code, data

The last three copy the content of the newest checkpoint for the reader. Damaged copies are written again.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from ..config import RunConfig
from ..core.state import Spec, State
from ..environment import BITS, differences, environment
from ..errors import ConfigError, DamageWarning, ElsewhereWarning, FedReFTError
from ..files import write_text
from . import checkpoints
from .checkpoints import Saved
from .client_states import ClientStates
from .history import complete, history_of
from .results import Run, run_of, saved_in, warn_of_elsewhere
from .round_mixing import RoundMixing


class Store:
    """Reads and writes one run's folder; without a folder it stores nothing."""

    def __init__(self, config: RunConfig, folder: str | Path | None):
        self.config = config
        self.folder = None if folder is None else Path(folder)
        self.manifest: dict = {}
        self.saved: Saved | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Reads the folder and locks it against other processes; the lock ends with this process.

        Raises FedReFTError where another process uses it, ConfigError where it holds a run of another config.
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
        """The last complete round; None where there is none, with a warning if all are damaged."""
        try:
            saved = saved_in(self.folder, self.config)
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

    def finished(
        self, questions: Callable[[], str], same_backbone: Callable[[RunConfig, str], bool], *, fixed: bool = False
    ) -> Run | None:
        """The run, if it is finished and this code made it from these questions and this backbone; else None.

        questions(): their fingerprint. It is not called where they are `fixed` (code, versions and config determine
        them) and those are the same, nor with source="hub": a finished run then needs no network.
        same_backbone(config, known): whether the backbone is the manifest's; it may raise. `load_run` checks neither.
        """
        saved = self.saved
        if saved is None or saved.manifest["round"] < self.config.rounds:
            return None
        if saved.manifest["code"] != environment()["code"]:
            return None
        if not same_backbone(self.config, saved.manifest["backbone"]):
            return None
        unasked = self.config.source == "hub" or (fixed and not differences(saved.manifest))
        if not unasked and saved.manifest["data"] != questions():
            return None
        self._write_config(saved)
        self._write_copies(saved)
        os.utime(self.folder / "manifest.json")  # marks the run as used, see batch.unchanged.written
        warn_of_elsewhere([saved], self.folder)
        return run_of(saved, self.folder)

    def describe(self, spec: Spec, facts: dict) -> None:
        """Record the spec of a client's state, and, for the manifest, what the run depends on apart from its config."""
        self.spec, self.manifest = spec, dict(facts)

    def fresh(self, start: ClientStates) -> Saved:
        """Round 0, before anything is computed, at `start`."""
        return Saved(self.config, {**self.manifest, "round": 0}, [], start)

    def resume(self, start: ClientStates) -> Saved:
        """The last complete round, or round 0 at `start` where none is usable. Warns where rounds are lost."""
        if self.saved is None:
            return self.fresh(start)
        found, here = self.saved.manifest, self.manifest
        keys = ("code", "backbone", "weights", "data", "dtype", "spec")
        other = [key for key in keys if found.get(key) != here[key]]
        if other:
            if found["round"]:
                lost = f"{found['round']} rounds in {self.folder} were made with other {', '.join(other)}"
                warnings.warn(f"{lost}: they are computed again", ElsewhereWarning, stacklevel=3)
            return self.fresh(start)
        changed = [f"{key} {found.get(key)} (here {here[key]})" for key in BITS if found.get(key) != here[key]]
        if changed and found["round"] < self.config.rounds:
            warnings.warn(
                f"the rounds so far in {self.folder} were made with {', '.join(changed)}: the rest may differ in bits",
                ElsewhereWarning, stacklevel=3,
            )  # fmt: skip
        return self.saved

    def save(
        self,
        t: int,
        states: ClientStates,
        round_mixing: Sequence[RoundMixing],
        rows: list[dict],
        memory: State,
        items: State,
    ) -> ClientStates:
        """Write round t. Until its checkpoint is complete, the round before it stays valid.

        Returns the states; those that are on disk need no memory. Raises FedReFTError where it cannot be written.
        """
        self.manifest |= {"round": t, "rounds": self.config.rounds, "checkpoint": checkpoints.name_of(t)}
        self.manifest["set_aside"] = [
            {"round": row["round"], "client": row["client"], "reason": row["note"]}
            for row in rows if row["metric"] == "admitted" and row["value"] == 0
        ]  # fmt: skip
        if self.folder is None:
            return states
        saved = Saved(self.config, self.manifest, complete(rows), states, round_mixing, memory, items)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # It says whose files these are (batch.unchanged.owner), and others may look while they are written.
            self._write_config(saved)
            states = checkpoints.write(self.folder, saved)
            self._write_copies(saved)
        except OSError as error:
            before = f"round {t - 1} stays" if t else "nothing is lost"
            raise FedReFTError(
                f"round {t} could not be written to {self.folder} ({error}), {before}: fix that and run again"
            ) from error
        return states

    def _write_copies(self, saved: Saved) -> None:
        """Writes history.csv and manifest.json of a checkpoint, where they are missing or differ."""
        self._write_where_it_differs("history.csv", saved.csv)
        self._write_where_it_differs("manifest.json", json.dumps(saved.manifest, indent=1))

    def _write_config(self, saved: Saved) -> None:
        self._write_where_it_differs("config.json", saved.config.model_dump_json(indent=1))

    def _write_where_it_differs(self, name: str, text: str) -> None:
        path = self.folder / name
        if not path.exists() or path.read_bytes() != text.encode():
            write_text(path, text)

    def run(
        self, states: ClientStates, round_mixing: Sequence[RoundMixing], rows: list[dict], memory: State, items: State
    ) -> Run:
        history = history_of(rows)
        return Run(self.config, history, states, self.spec, round_mixing, self.manifest, self.folder, memory, items)
