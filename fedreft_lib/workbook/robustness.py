"""Twelve bad updates, and the outcome when a federation receives one among honest ones.

The outcomes, the worst first:

    poisoned              the aggregate is not finite, or more than three times as far from the honest mean as the
                          furthest honest client
    wrong shape or dtype  the aggregate has other names, shapes or dtypes than the model
    aborts                the aggregation raises an error, and the run ends
    harmless              the bad update was used, and the aggregate stays within that bound
    refused               the aggregate is that of the honest clients
"""

from pathlib import Path

import pandas as pd
from torch import Tensor

from ..config import RunConfig
from ..core.aggregation import AGGREGATIONS
from ..errors import FedReFTError
from ..federation import attacks
from ..federation.assembly import assemble
from ..federation.local_clients import start
from ..federation.rounds import federated_round

BOUND = 3.0  # as in tests/torture/flower.py
WORDS = (
    "one NaN", "one Inf", "norm 1e30", "wrong shape", "broadcastable shape", "integer dtype", "complex dtype",
    "missing key", "extra key", "negative count", "NaN count", "huge count",
)  # fmt: skip
BAD_UPDATES = dict(zip(WORDS, attacks.BAD_UPDATES, strict=True))  # in words -> the name in RunConfig.attack
OUTCOMES = ("poisoned", "wrong shape or dtype", "aborts", "harmless", "refused")


def measured_flower() -> pd.DataFrame:
    """The outcomes of BAD_UPDATES in Flower's server strategies: a row for each strategy and bad update.

    Columns: strategy, flwr_version, bad_update, outcome (the worst of all trials), largest_error (distance between
    aggregate and honest mean in units of the furthest honest client's; inf: not finite, NaN: no aggregate with the
    model's shapes), sentence (the result of every form of the bad update, and its conditions).
    Source: our measurement. tests/torture/flower.py documents it, and repeats it where flwr is installed.
    """
    table = pd.read_csv(Path(__file__).with_name("flower_on_bad_updates.csv"), dtype=str, keep_default_na=False)
    return table.assign(largest_error=pd.to_numeric(table["largest_error"]))


def measured_here(kinds: tuple[str, ...] = AGGREGATIONS, seed: int = 0) -> pd.DataFrame:
    """The same columns, without the version, for All-But-Me here: a round of five clients, the last of which is bad.

    The outcome is "refused" only where all others end the round to the bit as if the bad client had not taken part.
    """
    rows = []
    for kind in kinds:
        config = RunConfig(
            backbone="tiny-llama", source="synthetic", layers="2-3", rank=2, setup="iid", clients=5, train_size=8,
            held_out_size=2, test_size=4, local_steps=2, rounds=1, mixing=1.0, retraction="raw", aggregation=kind,
            seed=seed,
        )  # fmt: skip
        honest = _after_a_round(config.but(drops=[[5, 1]]))[0][:4]
        for word, attack in BAD_UPDATES.items():
            judged = _judged(config.but(hostile=1, attack=attack), honest)
            rows.append({"strategy": f"All-But-Me, {kind.replace('_', ' ')}", "bad_update": word, **judged})
    return pd.DataFrame(rows)


def _judged(config: RunConfig, honest: Tensor) -> dict:
    """honest (4, P): the honest clients' states after the round without the bad one."""
    try:
        X, reasons = _after_a_round(config)
    except FedReFTError as error:  # any other error is our own mistake and must be seen
        return {"outcome": "aborts", "largest_error": float("nan"), "sentence": str(error)}
    spread = float((honest - honest.mean(0)).norm(dim=1).max())
    error = float((X[:4] - honest).norm(dim=1).max()) / spread
    same = bool((X[:4] == honest).all())
    outcome = "refused" if same and reasons else "harmless" if error <= BOUND else "poisoned"
    return {"outcome": outcome, "largest_error": error, "sentence": "; ".join(reasons)}


def _after_a_round(config: RunConfig) -> tuple[Tensor, list[str]]:
    federation = assemble(config)
    X, report = federated_round(federation, config, start(federation, config), 1)
    return X, [row["note"] for row in report.rows if row["metric"] == "admitted" and not row["value"]]
