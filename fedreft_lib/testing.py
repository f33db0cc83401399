"""Tests of a federation: every client's scores on its own test, and on the union of all."""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import evaluate, participation
from .client import common_start
from .client_states import ClientStates
from .config import RunConfig
from .encoded import Encoded, Labels
from .interventions import State
from .listening import Listening
from .server import Report, held_for_all
from .states import hash_of
from .strategies import STRATEGIES
from .strategies.base import alike
from .worlds import Client, World


def evaluate_all(
    world: World,
    config: RunConfig,
    X: Tensor | ClientStates | None,
    t: int,
    *,
    memory: State | None = None,
    who: Iterable[int] | None = None,
    progress: bool = False,
) -> list[dict]:
    """Every client's scores on its own test, and on the union where `union_size` asks for it; those of `who` alone
    where it is given. X (N, P), or (1, P) where all have one state.

    Where the server holds one state for all (`memory`), all but those who are gone are tested with the newest of it.
    X None is the untrained backbone, without any intervention (with the untrained head, where the task needs one).
    Labelled held-out items are scored too: ReFT picks the epoch, and we the round, by them.
    """
    report = Report(Listening((), torch.eye(0)), len(world.clients))
    gone, newest = participation.gone(config, t), held_for_all(memory or {})
    begin = common_start(world.model, config)
    head = {name: begin[name] for name in world.model.head_names}
    own_shares = STRATEGIES[config.method].test_share is not alike
    on_union: dict[tuple, list] = {}  # clients that share one state share its result
    who = range(len(world.clients)) if who is None else who
    for k in tqdm(who, desc="testing", unit="client", disable=not progress, leave=False):
        client = world.clients[k]
        row = None if X is None else X[k if len(X) > 1 else 0]
        if row is not None and newest and k not in gone:
            row = world.model.spec.row({**world.model.spec.named(row), **newest})
        ask = functools.partial(_scores, world, config, head if row is None else world.model.spec.named(row), client)
        parts = [("test", part) for part in client.test]
        if isinstance(client.held_out, Labels):
            parts.append(("held_out", client.held_out))
        for split, part in parts:
            # The untrained backbone is asked once for all runs; options that are read together round together.
            key = ("untrained", client.name, split, type(part), config.batch_size, config.max_new_tokens, hash_of(head))
            scores = ask(part) if row is not None else world.remembered(key, functools.partial(ask, part))
            for task, metric, value in scores:
                report.add(t, client.name, split, metric, value, task=task)
        if world.union and row is not None:
            key = (hash_of({"X": row}), client.name if own_shares else "")
            if key not in on_union:
                on_union[key] = [score for part in world.union for score in ask(part)]
            for _, metric, value in on_union[key]:
                report.add(t, client.name, "union", metric, value, task="union")
    return report.rows


def _scores(world: World, config: RunConfig, state: State, client: Client, part: Encoded) -> list[evaluate.Score]:
    """The scores of the model under a state; of the untrained backbone where it has no more than a head."""
    untrained = set(state) <= set(world.model.head_names)
    share = None if untrained else STRATEGIES[config.method].test_share(world, config, state, client, part)
    return evaluate.scores(part, world.model, state or None, config, share)
