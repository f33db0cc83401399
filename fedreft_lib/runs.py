"""A run's folder: what is in it, how it is written so that nothing is torn, and how runs are read back and compared.

config.json                    the RunConfig
history.csv                    long form: round, client, split, metric, value, bytes, seconds
manifest.json                  written last each round: which round is whole, hashes, versions, code, data
checkpoints/round_NNNN.safetensors   X (N, P) after the round, and M (rounds, N, N) so far; the last two are kept
"""

import hashlib
import json
import math
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from .config import RunConfig
from .errors import ConfigError, FedReFTError
from .interventions import State
from .metrics import PRIMARY
from .states import Spec, load_tensors, save_tensors, write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from .partition import ClientData
    from .worlds import World

HISTORY = ("round", "client", "task", "split", "metric", "value", "uplink_bytes", "downlink_bytes", "seconds", "note")
# The columns of results.csv: one row per (run, round, client, metric).
RESULTS = (
    "experiment", "benchmark", "task", "setup", "model", "method", "aggregation", "mixing", "intervention", "rank",
    "layers", "clients", "rounds", "seed", "round", "client", "split", "metric", "value", "trainable_params",
    "head_params", "uplink_bytes", "downlink_bytes", "seconds",
)  # fmt: skip
# What every manifest says.
NEEDED = {
    "round", "rounds", "checkpoint", "code", "backbone", "data", "dtype", "spec", "trainable_params", "head_params",
}  # fmt: skip
SERVER = "server."  # before the names of the server's own tensors in a checkpoint
# Modules that only show results; a change in them leaves finished runs valid.
SHOWS_ONLY = (
    "figures", "ablation_figures", "tables", "result_tables", "paper_tables", "method_facts", "widgets", "report",
    "batch", "ledger", "audit", "judge", "__main__",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run, finished or not: its config, history, last states (N, P), their spec, and M (rounds, N, N)."""

    config: RunConfig
    history: pd.DataFrame
    states: Tensor
    spec: Spec
    mixing_matrices: Tensor
    manifest: dict
    folder: Path | None
    memory: State = field(default_factory=dict)  # what the server keeps between rounds, where a method needs that

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
        if self.folder is not None and (self.folder / "config.json").exists():
            found = load_config(self.folder)
            if found != config:
                differing = [n for n in RunConfig.model_fields if getattr(found, n) != getattr(config, n)]
                raise ConfigError(
                    f"{self.folder} holds a run with another {differing[0]} ({getattr(found, differing[0])!r}, not "
                    f"{getattr(config, differing[0])!r}): choose another folder or delete this one"
                )

    def finished(self, questions: "Callable[[], list[ClientData]]") -> Run | None:
        """The run, if the folder holds it whole and this code made it from these questions."""
        manifest = self._usable_manifest()
        if manifest is None or manifest["round"] < self.config.rounds or manifest["code"] != code_fingerprint():
            return None
        # Not asked of the hub: a finished run can be read without a network.
        if self.config.source != "hub" and manifest["data"] != data_fingerprint(questions()):
            return None
        os.utime(self.folder / "manifest.json")  # says that the run is in use, see batch.set_aside
        return load_run(self.folder)

    def describe(self, world: "World", trained: tuple[str, ...]) -> None:
        """Note what the run depends on besides its config; `trained` names the tensors that a client trains."""
        backbone = world.model.backbone
        self.spec = world.model.spec
        sizes = {name: math.prod(shape) for name, shape in self.spec.shapes}
        self.manifest = {
            "code": code_fingerprint(),
            "backbone": backbone.fingerprint,
            "data": data_fingerprint(world.questions),
            "dtype": str(backbone.dtype),
            "device": str(backbone.device),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
            "trainable_params": sum(sizes[name] for name in trained),
            "head_params": sum(sizes[name] for name in world.model.head_names),
            "spec": [[name, list(shape)] for name, shape in self.spec.shapes],
        }

    def resume(self, start: Tensor) -> tuple[Tensor, list[dict], list[Tensor], State, int]:
        """(X, history rows, mixing matrices, server's memory, rounds done); `start` where nothing usable is there."""
        fresh = (start, [], [], {}, 0)
        found = self._usable_manifest()
        if found is None or any(
            found[key] != self.manifest[key] for key in ("code", "backbone", "data", "dtype", "spec")
        ):
            return fresh
        run = load_run(self.folder)
        return run.states, run.history.to_dict("records"), list(run.mixing_matrices), run.memory, found["round"]

    def _usable_manifest(self) -> dict | None:
        """The folder's manifest, or None where there is none or the checkpoint that it names is gone."""
        if self.folder is None or not (self.folder / "manifest.json").exists():
            return None
        manifest = read_manifest(self.folder)
        return manifest if (self.folder / "checkpoints" / manifest["checkpoint"]).exists() else None

    def save(self, t: int, X: Tensor, mixing_matrices: list[Tensor], rows: list[dict], memory: State) -> None:
        """Write round t; until the manifest names it, the round before it stays the valid one."""
        self.manifest |= {"round": t, "rounds": self.config.rounds, "checkpoint": f"round_{t:04d}.safetensors"}
        if self.folder is None:
            return
        checkpoints = self.folder / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        if t == 0:
            (self.folder / "manifest.json").unlink(missing_ok=True)  # it would vouch for the files that now come
            write_text(self.folder / "config.json", self.config.model_dump_json(indent=1))
        tensors = {"X": X, "M": _stacked(mixing_matrices, len(X)), **{SERVER + n: m for n, m in memory.items()}}
        save_tensors(tensors, checkpoints / self.manifest["checkpoint"])
        write_text(self.folder / "history.csv", history_of(rows).to_csv(index=False, na_rep="nan"))
        write_text(self.folder / "manifest.json", json.dumps(self.manifest, indent=1))
        kept = {f"round_{each:04d}.safetensors" for each in (t, t - 1)}
        for path in checkpoints.glob("round_*.safetensors"):
            if path.name not in kept:  # earlier rounds, and those of a run that was started again
                path.unlink()

    def run(self, X: Tensor, mixing_matrices: list[Tensor], rows: list[dict], memory: State) -> Run:
        M = _stacked(mixing_matrices, len(X))
        return Run(self.config, history_of(rows), X, self.spec, M, self.manifest, self.folder, memory)


def load_run(folder: str | Path) -> Run:
    """A run as its folder holds it, up to its last whole round. Raises FedReFTError where there is none."""
    folder = Path(folder)
    manifest, config = read_manifest(folder), load_config(folder)
    tensors = load_tensors(folder / "checkpoints" / manifest["checkpoint"])
    exactly = {"value": float, "seconds": float}  # Python's own reading gives back the bits that were written
    history = pd.read_csv(folder / "history.csv", keep_default_na=False, converters=exactly)
    # A crash between history and manifest leaves rows of a round that is not whole; it is computed again.
    history = history_of(history[history["round"] <= manifest["round"]].to_dict("records"))
    spec = Spec.of({name: tuple(shape) for name, shape in manifest["spec"]})
    memory = {name.removeprefix(SERVER): t for name, t in tensors.items() if name.startswith(SERVER)}
    return Run(config, history, tensors["X"], spec, tensors["M"], manifest, folder, memory)


def load_runs(folder: str | Path) -> list[Run]:
    """Every run below a folder, in the order of their names."""
    return [load_run(path.parent) for path in sorted(Path(folder).glob("*/manifest.json"))]


def results_of(runs: list[Run]) -> pd.DataFrame:
    """All histories as one table with the columns of results.csv."""
    tables = [run.results for run in runs]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(RESULTS))


def load_config(folder: Path) -> RunConfig:
    """The RunConfig of a run's folder. Raises FedReFTError where its config.json is missing or damaged."""
    path = folder / "config.json"
    try:
        return RunConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise FedReFTError(f"{path} cannot be read ({error}): delete the folder and run again") from None


def read_manifest(folder: Path) -> dict:
    """A run's manifest. Raises FedReFTError where there is none, or one that is damaged or of another version."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FedReFTError(f"there is no run in {folder}: it has no manifest.json") from None
    except ValueError:
        raise FedReFTError(f"{folder / 'manifest.json'} is damaged: delete the folder and run again") from None
    if missing := NEEDED - set(manifest):
        raise FedReFTError(
            f"{folder / 'manifest.json'} says nothing of {', '.join(sorted(missing))}, as another version of the "
            "library wrote it: delete the folder and run again"
        )
    return manifest


def history_of(rows: list[dict]) -> pd.DataFrame:
    """Rows as a table with every column of HISTORY, the ones that a row does not speak of filled in."""
    table = pd.DataFrame(rows, columns=list(HISTORY))
    filled = {"task": "", "note": "", "uplink_bytes": 0, "downlink_bytes": 0, "seconds": 0.0}
    for name, value in filled.items():
        table[name] = table[name].where(table[name].notna(), value)
    return table.astype({"round": int, "value": float, "uplink_bytes": int, "downlink_bytes": int, "seconds": float})


def data_fingerprint(questions: "list[ClientData]") -> str:
    """A hash of who holds which questions."""
    uids = [q.uid for client in questions for part in (client.train, client.held_out, client.test) for q in part]
    return hashlib.sha256(" ".join(uids).encode()).hexdigest()[:16]


def code_fingerprint() -> str:
    """A hash of the library's own source, but for the modules that only show results."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        if path.stem not in SHOWS_ONLY:
            digest.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _stacked(matrices: list[Tensor], n: int) -> Tensor:
    return torch.stack(matrices) if matrices else torch.zeros(0, n, n)
