"""Mean-ABM by a server that receives only sums, under Flower's secure aggregation (SecAgg+).

The mean of the others is (S - x_k) / (N - 1). Client k can compute it from the sum S of all updates. So in a round

    train.learn     every client trains, but does not send its update
    SecAgg+         the clients send their updates, rounded to a grid and masked; the result is the sum of all received
    train.take_in   every client in the sum receives it, and mixes in its share of the mean of the others

Individual updates are unknown, so the server has no admission, no checkpoints and no states: clients keep theirs.

The protection is weaker than the name suggests. Flower 1.41 makes masks from a 32-bit number (`pseudo_rand_gen`;
Flower's issue 7522), which one core can search in minutes. Nothing confirms whose a key is. A server that cheats may
ask for the secrets that open a mask. A server that runs this code honestly learns the sums, and what clients report.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.common import FitIns, Parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, SimpleClientManager
from flwr.server.strategy import Strategy
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.serverapp import Grid
from torch import Tensor

from ..config import RunConfig
from ..errors import ConfigError, FedReFTError
from ..federation import participation
from ..files import save_tensors
from ..model.device import one_thread
from . import records
from .levels import Levels
from .server_app import FlowerClients

if TYPE_CHECKING:
    import pandas as pd

LEAST = 3  # updates in a sum: with two, each client could compute the other's


@dataclass(frozen=True)
class Sums:
    """The server's result of a run: rows as in a run's history, and the sum S of each round, (rounds, Q) float64."""

    history: "pd.DataFrame"
    sums: Tensor

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.history.to_csv(folder / "history.csv", index=False)
        save_tensors({"S": self.sums}, folder / "sums.safetensors")


def serve_sums(grid: Grid, context: Context, config: RunConfig, *, seconds: float = 120.0, **how) -> Sums:
    """A run whose server sees only sums. seconds: for each of the protocol's four stages. how: see FlowerClients.

    Raises FedReFTError where too few clients answer; all clients then keep their states.
    """
    check_sums(config)
    with one_thread(config.device):
        return _served(grid, context, config, seconds, **how)


def _served(grid: Grid, context: Context, config: RunConfig, seconds: float, **how) -> Sums:
    nodes, levels = FlowerClients(grid, config, **how), Levels.of(config.clients)
    rows = _scores(nodes, 0)
    sums = []
    for t in range(1, config.rounds + 1):
        values = {"round": t, "levels": [levels.clip, levels.count]}
        learned, missing = _answered(nodes, "train.learn", values | {"expects": None}, range(config.clients))
        for k, reply in learned.items():
            fault = reply["fault"] or ""
            rows.append(_row(t, nodes.names[k], "train", "loss", reply["loss"], note=fault))
            missing |= {k: fault} if fault else {}
        who = [k for k in learned if k not in missing]
        messages = {nodes.nodes[k]: nodes.message_to(k, values) for k in who}
        S, summed = _sum(grid, context, messages, t, levels, seconds)
        if S is None:
            raise FedReFTError(f"round {t}: there is no sum out of {len(who)} clients, clients keep what they have")
        sums.append(S)
        who = [k for k in who if nodes.nodes[k] in summed]
        values |= {"refused": False, "answered": True, "sum_of": len(who)}
        taken, away = _answered(nodes, "train.take_in", values, who, {"sum": S})
        rows += [_row(t, nodes.names[k], "held_out", "lam", reply["lam"]) for k, reply in taken.items()]
        for k, why in ({k: "its update is not in the sum" for k in learned if k not in who} | missing | away).items():
            rows.append(_row(t, nodes.names[k], "server", "answered", 0.0, note=why))
        if t == config.rounds or (config.eval_every and t % config.eval_every == 0):
            rows += _scores(nodes, t)
    import pandas as pd

    return Sums(pd.DataFrame(rows), torch.stack(sums))


def check_sums(config: RunConfig) -> None:
    """Raises ConfigError for a config that needs more than sums."""
    if config.method != "fedreft" or config.aggregation != "mean":
        raise ConfigError(
            'of a sum only the mean of the others can be made: use method="fedreft" with aggregation="mean", '
            f"got {config.method!r} with {config.aggregation!r}"
        )
    if participation.some_miss_rounds(config) or config.hostile or config.norm_clip:
        raise ConfigError(
            "where only sums are known nobody is drawn, joins, leaves, is late or attacked, and nothing is shortened"
        )
    if config.item_scores:
        raise ConfigError("item_scores are kept in checkpoints, and a server of sums has none: leave item_scores out")
    if config.clients < LEAST:
        raise ConfigError(f"a sum of {config.clients} says everything of the other: use {LEAST} clients or more")
    if config.benchmark == "glue" and config.head == "averaged":
        raise ConfigError('of a head only what All-But-Me sends is summed: use head="shared" or "private"')


def _answered(
    nodes: FlowerClients, kind: str, values: dict, who: Sequence[int], tensors: dict[str, Tensor] | None = None
) -> tuple[dict[int, dict], dict[int, str]]:
    """By client: the answers, and why there is none."""
    found = nodes.ask(kind, {k: nodes.message_to(k, values, tensors) for k in who})
    return (
        {k: records.values(reply) for k, reply in sorted(found.items()) if not isinstance(reply, str)},
        {k: reply for k, reply in sorted(found.items()) if isinstance(reply, str)},
    )


def _scores(nodes: FlowerClients, t: int) -> list[dict]:
    values = {"round": t, "untrained": t == 0, "expects": None}
    found, _ = _answered(nodes, "evaluate.scores", values, range(len(nodes.names)))
    return [row for reply in found.values() for row in reply["rows"]]


def _row(t: int, client: str, split: str, metric: str, value: float, **more: str) -> dict:
    return {"round": t, "client": client, "split": split, "metric": metric, "value": value, **more}


# ---- SecAgg+ --------------------------------------------------------------------------------------------------------


class _SumStrategy(Strategy):
    """The strategy that the protocol needs: it names the clients to ask, and receives the mean."""

    def __init__(self, messages: dict[int, RecordDict]):
        self.messages = messages
        self.mean: Tensor | None = None
        self.summed: set[int] = set()

    def configure_fit(self, server_round, parameters, client_manager):
        return [
            (SimpleNamespace(node_id=node), FitIns(Parameters([], ""), dict(content[records.VALUES])))
            for node, content in self.messages.items()
        ]

    def aggregate_fit(self, server_round, results, failures):
        self.mean = torch.from_numpy(parameters_to_ndarrays(results[0][1].parameters)[0])
        self.summed = {node.node_id for node, _ in results}
        return None, {}

    initialize_parameters = configure_evaluate = aggregate_evaluate = evaluate = None  # not used here


def _sum(
    grid: Grid, context: Context, messages: dict[int, RecordDict], t: int, levels: Levels, seconds: float
) -> tuple[Tensor | None, set[int]]:
    """S (Q,) float64 and the nodes whose updates are in it; None where too few answered. messages: by node."""
    if len(messages) < LEAST:
        return None, set()
    strategy = _SumStrategy(messages)
    legacy = LegacyContext(context, strategy=strategy, client_manager=SimpleClientManager())
    legacy.state["config"] = ConfigRecord({"current_round": t})
    legacy.state["parameters"] = ArrayRecord()
    workflow = SecAggPlusWorkflow(
        num_shares=1.0,  # one share of each secret for every other client
        reconstruction_threshold=max(LEAST, math.ceil(2 * len(messages) / 3)),
        max_weight=1.0,  # for all clients: All-But-Me counts clients, not examples
        clipping_range=levels.clip,
        quantization_range=levels.count,
        timeout=seconds,
    )
    workflow(grid, legacy)
    if strategy.mean is None:
        return None, set()
    return levels.of_mean(strategy.mean, len(strategy.summed)), strategy.summed
