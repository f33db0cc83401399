"""Tests of a federation: every client's scores on its own test, and on the union of all tests."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..config import RunConfig
from ..core.state import State
from ..files import hash_of
from ..methods import METHODS
from ..methods.method import DEFAULTS
from ..model import scoring
from ..model.encoding import Encoded, LabelSet
from ..runs.client_states import ClientStates
from ..runs.round_mixing import RoundMixing
from . import participation
from .assembly import Federation
from .client import common_start
from .server import Report, held_for_all
from .work import Work, in_turn

AT_ONCE = 64  # clients whose states are in memory together


def evaluate_all(
    federation: Federation,
    config: RunConfig,
    X: Tensor | ClientStates | None,
    t: int,
    *,
    memory: State | None = None,
    who: Iterable[int] | None = None,
    progress: bool = False,
    work: Work = in_turn,
) -> list[dict]:
    """The scores of every client, or of the clients `who`, on its own test, and on the union where `union_size` > 0.

    With `item_scores` there are further rows for its own items: their value is a list, with a number for each item.

    X (N, P), or (1, P) where all have one state. None: the untrained backbone without an intervention (with the
    untrained head, where the task needs one). Where the server holds one state for all (in `memory`), all clients that
    are not gone are tested with the newest. Labelled held-out items are scored too: ReFT chooses the epoch by them, and
    we the round.
    """
    report = Report(RoundMixing((), torch.eye(0)), len(federation.clients))
    who = list(range(len(federation.clients)) if who is None else who)
    on_union: dict[tuple, list[scoring.Score]] = {}
    total = sum(len(parts) for k in who for parts in _asked_of(federation, k, X is None).values())
    with tqdm(desc="testing", total=total, unit="test", disable=not progress, leave=False) as bar:
        for first in range(0, len(who), AT_ONCE):
            some = who[first : first + AT_ONCE]
            _evaluate(federation, config, X, t, memory or {}, some, report, on_union, work, bar)
    return report.rows


def _evaluate(
    federation: Federation,
    config: RunConfig,
    X: Tensor | ClientStates | None,
    t: int,
    memory: State,
    who: list[int],
    report: Report,
    on_union: dict[tuple, list[scoring.Score]],
    work: Work,
    bar: tqdm,
) -> None:
    """Adds the rows of the clients `who` to the report. on_union: clients that share one state share its result."""
    newest, spec = held_for_all(memory), federation.model.spec
    begin = common_start(federation.model.layout, config)
    head = {name: begin[name] for name in federation.model.layout.head_names}
    own_shares = METHODS[config.method].test_share is not DEFAULTS.test_share
    extras = federation.model.layout.extras
    asked: list[tuple[tuple, tuple]] = []  # for each test a key, the same for equal results, and the task
    for k in who:
        row = None if X is None else X[k if len(X) > 1 else 0]
        state = head if row is None else spec.named(spec.row(tested_with(federation, config, row, k, t, newest)))
        for split, parts in _asked_of(federation, k, row is None).items():
            of: tuple = (k,)
            if split == "union" and parts:
                read = {name: tensor for name, tensor in state.items() if name not in extras}
                of = hash_of(read), federation.clients[k].name if own_shares else ""
            for place, part in enumerate(parts):
                untrained = row is None and _untrained(federation, config, k, split, part, head)
                asked.append((untrained or (split, place, *of), (k, split, place, state)))
    tasks = {key: task for key, task in asked if key not in on_union}
    every = list(tasks.values())

    def compute(places: Sequence[int]) -> list[list[scoring.Score]]:
        bar.update(len(asked) - len(places))  # what is known already
        return work(scores_of, federation, config, [every[i] for i in places], bar.update)

    # The untrained backbone is tested once for all runs.
    found = federation.remembered(list(tasks), compute) if X is None else compute(range(len(every)))
    scored = dict(zip(tasks, found, strict=True)) | on_union
    on_union |= {key: scores for key, scores in scored.items() if key[0] == "union"}
    for key, (k, split, *_) in asked:
        for task, metric, value in scored[key]:
            if isinstance(value, list) and (split == "union" or not config.item_scores):
                continue
            named = "union" if split == "union" else task
            report.add(t, federation.clients[k].name, split, metric, value, task=named)


def _untrained(federation: Federation, config: RunConfig, k: int, split: str, part: Encoded, head: State) -> tuple:
    """What the untrained backbone's scores depend on. The batch size is part of it: it changes rounding."""
    last = getattr(part, "last", None) is None
    name, size = federation.clients[k].name, config.batch_size
    return "untrained", name, split, type(part), last, size, config.max_new_tokens, hash_of(head)


def _asked_of(federation: Federation, k: int, untrained: bool) -> dict[str, Sequence[Encoded]]:
    """`tests_of`; the untrained backbone is not tested on the union."""
    return {split: parts for split, parts in tests_of(federation, k).items() if not (untrained and split == "union")}


def tests_of(federation: Federation, k: int) -> dict[str, Sequence[Encoded]]:
    """What client k (from 0) is tested with: its own test, its held-out items where they are labelled, the union."""
    client = federation.clients[k]
    held_out = [client.held_out] if isinstance(client.held_out, LabelSet) else []
    return {"test": client.test, "held_out": held_out, "union": federation.union}


def tested_with(federation: Federation, config: RunConfig, row: Tensor, k: int, t: int, newest: State) -> State:
    """The state with which client k (from 0) is tested after round t, from its row (P,).

    newest: what the server holds for all, which counts unless the client is gone.
    """
    state = {**federation.model.spec.named(row), **(newest if k not in participation.gone(config, t) else {})}
    return METHODS[config.method].deploy(federation.model, config, state, federation.clients[k], t)


def scores_of(
    federation: Federation,
    config: RunConfig,
    k: int,
    split: str,
    place: int,
    state: State,
    on_step: Callable[[], object],
) -> list[scoring.Score]:
    """The scores of client k on a part of `tests_of`; of the untrained backbone where the state has at most a head."""
    client, part = federation.clients[k], tests_of(federation, k)[split][place]
    untrained = set(state) <= set(federation.model.layout.head_names)
    share = None if untrained else METHODS[config.method].test_share(federation.model, config, state, client, part)
    found = scoring.scores(part, federation.model, state or None, config, share)
    on_step()
    return found
