"""A run's complete rounds on disk: one file each, with a hash that reveals damage.

round_NNNN.safetensors holds states X (m, P) after the round and the numbers of their clients, the start that all other
clients still have, the mixing matrices so far, the server's own tensors, the history (CSV, as bytes), and the scores of
single items so far if the run keeps them. Its notes hold the config and the manifest. Nothing is unpickled.

Up to `IN_ONE_FILE` bytes of states, a file has all of them and needs no other file. A run continues from the newest
undamaged one, whatever happened to the others. In a larger federation a round's file has only the states that the round
made; `where` names the earlier files of the others. Those files stay while a kept round needs them, and a round is
complete only if they are undamaged, too. The states are then read when they are needed.
"""

import contextlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..config import RunConfig
from ..core.state import Spec, State, is_finite
from ..errors import DamageWarning, FedReFTError
from ..files import load_tensors, save_tensors
from .client_states import TENSOR, ClientStates, OnDisk
from .history import csv_of, rows_of
from .round_mixing import PACKED, RoundMixing, packed, unpacked

# The entries of every manifest.
NEEDED = {
    "round", "rounds", "checkpoint", "code", "backbone", "data", "dtype", "spec", "trainable_params", "head_params",
}  # fmt: skip
SERVER = "server."  # prefix of the names of the server's own tensors
ITEMS = "items."  # and of the scores of single items
KEPT = 2  # rounds: the last, and the one before it in case the last is damaged
IN_ONE_FILE = 2**26  # bytes of states
LOOKS = 10  # at most, into a folder that another process writes to
AT_START = -1  # in `where`: no round has changed this client


@dataclass(frozen=True)
class Saved:
    """A complete round: all states, the mixing matrices and the history so far, the server's tensors, item scores."""

    config: RunConfig
    manifest: dict
    rows: list[dict]  # of the history, complete
    states: ClientStates
    round_mixing: Sequence[RoundMixing] = ()
    memory: State = field(default_factory=dict)
    items: State = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        return Spec.of({name: tuple(shape) for name, shape in self.manifest["spec"]})

    @cached_property  # used twice: in the checkpoint and, for the reader, in history.csv
    def csv(self) -> str:
        """The history as text."""
        return csv_of(self.rows)


def name_of(t: int) -> str:
    return f"round_{t:04d}.safetensors"


def write(folder: Path, saved: Saved) -> ClientStates:
    """Write a round into a run's folder. Returns its states; a large federation's are read from there from now on.

    Then it deletes earlier rounds, except the one before and the files that these two need.
    """
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    t, states = saved.manifest["round"], saved.states
    large = _is_large(states)
    where = torch.full((len(states),), AT_START)
    for k, row in states.own.items():
        where[k] = row.round if large and isinstance(row, OnDisk) else t
    clients = (where == t).nonzero()[:, 0].tolist()
    text = saved.csv.encode()
    tensors = {
        TENSOR: states[clients], "clients": torch.tensor(clients, dtype=torch.long), "where": where,
        "start": states.common, "history": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        **packed(saved.round_mixing),
    }  # fmt: skip
    tensors |= {SERVER + name: tensor for name, tensor in saved.memory.items()}
    tensors |= {ITEMS + name: tensor for name, tensor in saved.items.items()}
    notes = {"config": saved.config.model_dump_json(), "manifest": json.dumps(saved.manifest)}
    path = checkpoints / name_of(t)
    save_tensors(tensors, path, notes)
    if t == 0:  # the run starts again: nothing of the earlier one may remain
        for other in _newest_first(folder):  # the newest first: the others may hold states that it needs
            if other != path:
                other.unlink()
    _forget(folder)
    if not large:
        return states
    return replace(states, own={**states.own, **{k: OnDisk(path, t, i) for i, k in enumerate(clients)}})


def _is_large(states: ClientStates) -> bool:
    return len(states.own) * states.common.nbytes > IN_ONE_FILE


def _forget(folder: Path) -> None:
    """Delete the rounds that are not among the newest and that those do not need."""
    paths, needed = _newest_first(folder), set()
    for path in paths[:KEPT]:
        with contextlib.suppress(SafetensorError, OSError), safe_open(path, framework="pt") as file:
            needed |= {name_of(t) for t in file.get_tensor("where").unique().tolist()}
    for path in paths[KEPT:]:
        if path.name not in needed:
            path.unlink()


def newest(folder: Path, config: RunConfig | None = None, looks: int = LOOKS) -> Saved | None:
    """The newest complete round of a run's folder; None where there is no round at all.

    It skips damaged rounds with a DamageWarning. It also skips rounds of another config than the one given, if a round
    of that config exists. Raises FedReFTError where all rounds are damaged.
    """
    passed, foreign = [], None
    for path in _newest_first(folder):
        try:
            saved = read(path)
        except FedReFTError as error:
            if looks > 1 and path not in _newest_first(folder):  # another process goes on with this run
                return newest(folder, config, looks - 1)
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
    """One checkpoint. Raises FedReFTError where it, or one that it needs, is damaged or not of this version."""
    tensors, notes = load_tensors(path)
    # Copies have aligned addresses, as in a run that was never stopped: the last bits of products depend on that.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        config, manifest = RunConfig(**json.loads(notes["config"])), json.loads(notes["manifest"])
        text, where, start = bytes(tensors.pop("history").numpy()), tensors.pop("where"), tensors.pop("start")
        rows = dict(zip(tensors.pop("clients").tolist(), tensors.pop(TENSOR), strict=True))
        round_mixing = unpacked({name: tensors.pop(name) for name in PACKED})
        items = {name.removeprefix(ITEMS): tensors.pop(name) for name in list(tensors) if name.startswith(ITEMS)}
        memory = {name.removeprefix(SERVER): tensor for name, tensor in tensors.items()}
        states = ClientStates(start, len(where), rows)
        saved = Saved(config, manifest, rows_of(text.decode()), states, round_mixing, memory, items)
        own = (where == manifest["round"]).nonzero()[:, 0].tolist()
        fits = not (NEEDED - set(manifest)) and sorted(rows) == own
        fits = fits and all(row.shape == (saved.spec.size,) for row in (start, *rows.values()))
    except (KeyError, TypeError, ValueError, RuntimeError):  # undamaged, but of another version or another program
        fits = False
    if not fits:
        raise FedReFTError(f"{path} is no checkpoint of this version of the library")
    if not all(map(is_finite, rows.values())):
        raise FedReFTError(f"{path} holds states that are not finite")
    elsewhere = sorted(set(where.unique().tolist()) - {AT_START, manifest["round"]})
    if not elsewhere:
        return saved
    found = {k: OnDisk(path, manifest["round"], i) for i, k in enumerate(rows)}
    for t in elsewhere:
        found |= _rows_of(path.with_name(name_of(t)), t, (where == t).nonzero()[:, 0].tolist(), config, len(start))
    return replace(saved, states=replace(states, own=found))


def _rows_of(path: Path, t: int, wanted: list[int], config: RunConfig, size: int) -> dict[int, OnDisk]:
    """The places of the states of the clients `wanted` in an earlier checkpoint of the run.

    Raises FedReFTError where that is damaged or does not fit.
    """
    tensors, notes = load_tensors(path)
    try:
        places = {k: i for i, k in enumerate(tensors["clients"].tolist())}
        fits = RunConfig(**json.loads(notes["config"])) == config and set(wanted) <= set(places)
        fits = fits and tuple(tensors[TENSOR].shape) == (len(places), size) and is_finite(tensors[TENSOR])
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise FedReFTError(f"{path} is not the checkpoint that a later one needs")
    return {k: OnDisk(path, t, places[k]) for k in wanted}


def _newest_first(folder: Path) -> list[Path]:
    paths = (folder / "checkpoints").glob("round_*.safetensors")
    return sorted(paths, key=lambda path: (len(path.name), path.name), reverse=True)
