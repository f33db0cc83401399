"""Tests of a federation: every client's scores on its own test, and on the union of all tests."""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..config import RunConfig
from ..core.state import State
from ..files import hash_of
from ..methods import METHODS
from ..methods.method import DEFAULTS
from ..model import scoring
from ..model.encoding import Client, Encoded, LabelSet
from ..runs.client_states import ClientStates
from ..runs.round_mixing import RoundMixing
from . import participation
from .assembly import Federation
from .client import common_start
from .server import Report, held_for_all


def evaluate_all(
    federation: Federation,
    config: RunConfig,
    X: Tensor | ClientStates | None,
    t: int,
    *,
    memory: State | None = None,
    who: Iterable[int] | None = None,
    progress: bool = False,
) -> list[dict]:
    """The scores of every client, or of the clients `who`, on its own test, and on the union where `union_size` > 0.

    With `item_scores` there are further rows for its own items: their value is a list, with a number for each item.

    X (N, P), or (1, P) where all have one state. None: the untrained backbone without an intervention (with the
    untrained head, where the task needs one). Where the server holds one state for all (in `memory`), all clients that
    are not gone are tested with the newest. Labelled held-out items are scored too: ReFT chooses the epoch by them, and
    we the round.
    """
    report = Report(RoundMixing((), torch.eye(0)), len(federation.clients))
    newest = held_for_all(memory or {})
    begin = common_start(federation.model.layout, config)
    head = {name: begin[name] for name in federation.model.layout.head_names}
    method = METHODS[config.method]
    own_shares = method.test_share is not DEFAULTS.test_share
    extras = federation.model.layout.extras
    on_union: dict[tuple, list] = {}  # clients that share one state share its result
    who = range(len(federation.clients)) if who is None else who
    for k in tqdm(who, desc="testing", unit="client", disable=not progress, leave=False):
        client = federation.clients[k]
        row = None if X is None else X[k if len(X) > 1 else 0]
        if row is not None:
            row = federation.model.spec.row(tested_with(federation, config, row, k, t, newest))
        ask = functools.partial(
            _scores, federation, config, head if row is None else federation.model.spec.named(row), client
        )
        parts = [("test", part) for part in client.test]
        if isinstance(client.held_out, LabelSet):
            parts.append(("held_out", client.held_out))
        for split, part in parts:
            # The untrained backbone is tested once for all runs. The batch size is in the key: it changes rounding.
            key = (
                "untrained",
                client.name,
                split,
                type(part),
                getattr(part, "last", None) is None,
                config.batch_size,
                config.max_new_tokens,
                hash_of(head),
            )
            scores = ask(part) if row is not None else federation.remembered(key, functools.partial(ask, part))
            for task, metric, value in scores:
                if isinstance(value, list) and not config.item_scores:
                    continue
                report.add(t, client.name, split, metric, value, task=task)
        if federation.union and row is not None:
            read = {n: tensor for n, tensor in federation.model.spec.named(row).items() if n not in extras}
            key = (hash_of(read), client.name if own_shares else "")
            if key not in on_union:
                on_union[key] = [score for part in federation.union for score in ask(part)]
            for _, metric, value in on_union[key]:
                if not isinstance(value, list):
                    report.add(t, client.name, "union", metric, value, task="union")
    return report.rows


def tested_with(federation: Federation, config: RunConfig, row: Tensor, k: int, t: int, newest: State) -> State:
    """The state with which client k (from 0) is tested after round t, from its row (P,).

    newest: what the server holds for all, which counts unless the client is gone.
    """
    state = {**federation.model.spec.named(row), **(newest if k not in participation.gone(config, t) else {})}
    return METHODS[config.method].deploy(federation.model, config, state, federation.clients[k], t)


def _scores(
    federation: Federation, config: RunConfig, state: State, client: Client, part: Encoded
) -> list[scoring.Score]:
    """The scores of the model with a state; of the untrained backbone where the state has at most a head."""
    untrained = set(state) <= set(federation.model.layout.head_names)
    share = None if untrained else METHODS[config.method].test_share(federation.model, config, state, client, part)
    return scoring.scores(part, federation.model, state or None, config, share)
