"""Runs read from their folders: config, history, states, mixing matrices; and many runs as one table."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import Spec, State
from ..data.cuts import Cuts
from ..data.grading.metrics import PRIMARY
from ..environment import differences
from ..errors import ConfigError, ElsewhereWarning, FedReFTError
from . import checkpoints
from .checkpoints import NEEDED, Saved
from .client_states import ClientStates
from .history import history_of
from .item_scores import table_of
from .round_mixing import RoundMixing

if TYPE_CHECKING:
    import pandas as pd

# The columns of results.csv: one row per (run, round, client, metric).
RESULTS = (
    "experiment", "benchmark", "task", "setup", "model", "method", "aggregation", "mixing", "intervention", "rank",
    "layers", "clients", "rounds", "seed", "round", "client", "split", "metric", "value", "trainable_params",
    "head_params", "uplink_bytes", "downlink_bytes", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run, finished or not: its config, history, last states with their spec, and mixing matrices."""

    config: RunConfig
    history: "pd.DataFrame"
    clients: ClientStates
    spec: Spec
    round_mixing: Sequence[RoundMixing]
    manifest: dict
    folder: Path | None
    memory: State = field(default_factory=dict)  # tensors that the server keeps between rounds, for some methods
    items: State = field(default_factory=dict)  # see `item_scores`

    @cached_property
    def states(self) -> Tensor:
        """X (N, P), all states in memory; `clients` gives one at a time."""
        return self.clients.all

    @cached_property
    def mixing_matrices(self) -> Tensor:
        """M (rounds, N, N)."""
        n = len(self.clients)
        matrices = [each.among(n) for each in self.round_mixing]
        return torch.stack(matrices) if matrices else torch.zeros(0, n, n)

    @property
    def cut(self) -> dict[str, Cuts]:
        """How many texts of each client did not fit into max_length, see data.cuts."""
        return self.manifest.get("cut", {})

    @property
    def results(self) -> "pd.DataFrame":
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

    @cached_property
    def item_scores(self) -> "pd.DataFrame":
        """The score of every item of a client's own tests, see runs.item_scores; empty without config.item_scores."""
        return table_of(self.items)

    def accuracy(self, round: int | None = None, split: str = "test") -> "pd.Series":
        """Each client's accuracy (or its task's primary metric) in percent after a round (default: the last)."""
        chosen = self.history[self.history["metric"].isin(PRIMARY) & (self.history["split"] == split)]
        last = chosen["round"].max() if round is None else round
        return chosen[chosen["round"] == last].set_index("client")["value"]


def load_run(folder: str | Path) -> Run:
    """A run from its folder, up to its last complete round. Raises FedReFTError where there is none.

    Warns (ElsewhereWarning) where it was made with other code or versions than here, and (DamageWarning) where the
    newest checkpoint is damaged and an earlier one is read. It does not check whether the same data and weights are
    available here: `run` does that when it continues or returns the run.
    """
    run = read_run(folder)
    warn_of_elsewhere([run], run.folder)
    return run


def read_run(folder: str | Path) -> Run:
    """`load_run` without the ElsewhereWarning."""
    folder = Path(folder)
    saved = saved_in(folder, _config(folder))
    if saved is None:
        raise FedReFTError(f"there is no run in {folder}: it has no checkpoint")
    return run_of(saved, folder)


def load_runs(folder: str | Path, wanted: Callable[[str], bool] = lambda experiment: True) -> list[Run]:
    """All runs in a folder, sorted by name. One warning for all that were made with other code or versions.

    wanted: whether those of an experiment are read; the others may just be written by another notebook.
    """
    found = []
    for path in sorted(Path(folder).glob("*/manifest.json")):
        config = _config(path.parent)
        if config and not wanted(config.experiment):
            continue
        try:
            run = read_run(path.parent)
        except FedReFTError:
            if path.exists():
                raise
            continue  # a batch has moved it meanwhile
        if wanted(run.config.experiment):
            found.append(run)
    warn_of_elsewhere(found, folder)
    return found


def run_of(saved: Saved, folder: Path) -> Run:
    history = history_of(saved.rows)
    return Run(
        saved.config, history, saved.states, saved.spec, saved.round_mixing, saved.manifest, folder, saved.memory,
        saved.items,
    )  # fmt: skip


def warn_of_elsewhere(found: Sequence[Run | Saved], folder: str | Path) -> None:
    elsewhere = sorted({", ".join(differences(each.manifest)) for each in found} - {""})
    if elsewhere:
        warnings.warn(f"{folder} was made with {'; '.join(elsewhere)}", ElsewhereWarning, stacklevel=3)


def saved_in(folder: Path, config: RunConfig | None) -> Saved | None:
    """The newest complete round. manifest.json replaces its manifest where it is undamaged and about this round."""
    saved = checkpoints.newest(folder, config)
    copy = _json(folder / "manifest.json")
    if saved is None or not isinstance(copy, dict) or NEEDED - set(copy):
        return saved
    speaks_of_it = all(copy[key] == saved.manifest[key] for key in ("checkpoint", "spec"))
    return replace(saved, manifest=copy) if speaks_of_it else saved


def _config(folder: Path) -> RunConfig | None:
    """The config in config.json; None where the file is missing or damaged."""
    try:
        return RunConfig(**_json(folder / "config.json"))
    except (TypeError, ConfigError):
        return None


def _json(path: Path) -> Any:
    """The content of a file; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def results_of(runs: list[Run]) -> "pd.DataFrame":
    """All histories as one table with the columns of results.csv."""
    import pandas as pd

    tables = [run.results for run in runs]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(RESULTS))
