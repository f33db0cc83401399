"""What Flower's server strategies make of the twelve bad updates; writes the table in fedreft_lib/workbook.

    python -m venv VENV && VENV/bin/pip install flwr==1.41.0 && VENV/bin/python tests/torture/flower.py

Flower is no dependency of this project, so this file needs flwr and numpy alone. It skips where flwr is missing.

One trial: four honest clients and one bad one train from a common point. Each reply is built as a ClientApp builds it
(ArrayRecord and MetricRecord in a RecordDict in a Message) and goes through Flower's own serialisation. All five enter
`aggregate_train` of a strategy of `flwr.serverapp.strategy`, which is what `Strategy.start` calls once a round: no
grid, no simulation. There are 25 seeds, five for each place of the bad reply, since replies come in any order. A kind
of bad update has several forms where its form matters. Four honest clients and not three: with four clients in all,
FedTrimmedAvg's default beta = 0.2 cuts nobody, and Krum asks for 2 f + 3 = 5 clients when f = 1 is bad.

Outcomes, the worst first; a row of the table has the worst of its trials, and its sentence says what the others gave:

    poisoned              the aggregate is not finite, or further from the honest mean than BOUND times the furthest
                          honest client is
    wrong shape or dtype  the aggregate has other names, shapes or dtypes than the model
    aborts                the aggregation raises, and as `Strategy.start` does not catch it, the run ends
    harmless              an aggregate within BOUND, although the bad update was used; how much of it was used is in the
                          sentence: one of five equal clients pulls the average 0.20 of the way to its update
    refused               the aggregate is that of honest clients: what the strategy gives without the bad one, or the
                          mean of some of the honest ones

largest_error is the largest distance between aggregate and honest mean, in units of the furthest honest client's
distance; inf where an aggregate is not finite, empty where none of the model's shapes comes out.

Strategies have their defaults, except where a user who expects one bad client must say so: Krum and MultiKrum have
num_malicious_nodes = 1 (MultiKrum num_nodes_to_select = n - f = 4), clipping has a norm just above the honest ones and
no noise. Krum and MultiKrum do not look at counts: whether such a client is chosen is up to its arrays.

What Flower 1.41 checks by itself: names must agree, a count must be one number below 2**64 (a larger one cannot be
sent), and a reply that carries an error is left out. `accept_failures` of the older interface (flwr.server.strategy) is
about such replies, not about bad values. Clipping with a privacy accountant raises on counts that are not positive,
finite and equal; with bad counts that would be an abort.
"""

import csv
import itertools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

try:
    from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
    from flwr.serverapp import strategy as server
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:
    server = None

Update = dict[str, np.ndarray]
TABLE = Path(__file__).parents[2] / "fedreft_lib" / "workbook" / "flower_on_bad_updates.csv"
COLUMNS = ("strategy", "flwr_version", "bad_update", "outcome", "largest_error", "sentence")
OUTCOMES = ("poisoned", "wrong shape or dtype", "aborts", "harmless", "refused")  # the worst first
BOUND = 3.0
HONEST, COUNT = 4, 8
TRIALS = [(seed, seed % (HONEST + 1)) for seed in range(25)]  # (seed, place of the bad reply)
SHAPES = {"R": (8, 2), "W": (2, 8), "b": (2,)}  # a small LoReFT intervention
SPREAD, CLIP = 0.1, 1.0  # honest updates have a norm near 0.1 * sqrt(34) = 0.58

# --- the twelve kinds -------------------------------------------------------------------------------------------------


def with_first(array: np.ndarray, value: float) -> np.ndarray:
    """A copy whose first entry is `value`."""
    changed = array.copy()
    changed.flat[0] = value
    return changed


def scaled(update: Update, norm: float) -> Update:
    """The update with this L2 norm over all its arrays, in float32."""
    factor = norm / np.sqrt(sum(float((array.astype(np.float64) ** 2).sum()) for array in update.values()))
    return {name: (array * factor).astype(np.float32) for name, array in update.items()}


def arrays(change: Callable[[Update], Update]) -> Callable[[Update], tuple[Update, float]]:
    """A bad update whose arrays are changed."""
    return lambda update: (change(update), COUNT)


def count(value: float) -> Callable[[Update], tuple[Update, float]]:
    """A bad update whose arrays are honest and whose example count is `value`."""
    return lambda update: (update, value)


# kind -> form -> what the bad client makes of an honest update. The honest counts sum to 32.
BAD_UPDATES = {
    "one NaN": {"": arrays(lambda u: u | {"W": with_first(u["W"], np.nan)})},
    "one Inf": {"": arrays(lambda u: u | {"W": with_first(u["W"], np.inf)})},
    "norm 1e30": {"": arrays(lambda u: scaled(u, 1e30))},
    "wrong shape": {
        "transposed": arrays(lambda u: u | {"W": u["W"].T}),
        "longer": arrays(lambda u: u | {"b": np.append(u["b"], u["b"])}),
    },
    "broadcastable shape": {
        "one row": arrays(lambda u: u | {"W": u["W"][:1]}),
        "one more axis": arrays(lambda u: u | {"W": u["W"][None]}),
    },
    "integer dtype": {"": arrays(lambda u: {name: np.rint(array).astype(np.int64) for name, array in u.items()})},
    "complex dtype": {"": arrays(lambda u: {name: array.astype(np.complex64) for name, array in u.items()})},
    "missing key": {"": arrays(lambda u: {name: array for name, array in u.items() if name != "b"})},
    "extra key": {"": arrays(lambda u: u | {"c": u["b"]})},
    "negative count": {"-8": count(-8), "-31": count(-31), "-32": count(-32)},
    "NaN count": {"": count(float("nan"))},
    "huge count": {"": count(10**12)},
}

# --- the judgement ----------------------------------------------------------------------------------------------------


def flat(update: Update) -> np.ndarray:
    """All numbers of an update of the model's names, in the model's order, (P,)."""
    return np.concatenate([update[name].reshape(-1) for name in SHAPES]).astype(np.complex128)


@dataclass(frozen=True)
class Trial:
    """What came of one bad update: the outcome, the error in honest distances, and why in a few words."""

    outcome: str
    error: float | None = None
    detail: str = ""


def judge(aggregate: Update, honest: list[Update], without_bad: Update, bad: Update) -> Trial:
    """The outcome of a trial that gave an aggregate. without_bad: what the strategy gives for `honest` alone."""
    shapes = {name: array.shape for name, array in aggregate.items()}
    if shapes != SHAPES:
        changed = sorted(name for name in shapes | SHAPES if shapes.get(name) != SHAPES.get(name))
        return Trial("wrong shape or dtype", None, f"{changed[0]} comes out as {shapes.get(changed[0])}")
    X = np.stack([flat(update) for update in honest])  # (N, P)
    mean, x = X.mean(0), flat(aggregate)
    if not np.isfinite(x).all():
        return Trial("poisoned", np.inf, f"{int((~np.isfinite(x)).sum())} of {x.size} numbers not finite")
    error = float(np.linalg.norm(x - mean) / np.linalg.norm(X - mean, axis=1).max())
    if error > BOUND:
        return Trial("poisoned", error, f"error up to {error:.2g}")
    if dtypes := {str(array.dtype) for array in aggregate.values()} - {"float32"}:
        return Trial("wrong shape or dtype", error, f"comes out as {dtypes.pop()}")
    averages = (
        X[list(some)].mean(0) for n in range(1, len(X) + 1) for some in itertools.combinations(range(len(X)), n)
    )
    if any(np.allclose(x, other, rtol=1e-5, atol=1e-6) for other in (flat(without_bad), *averages)):
        return Trial("refused", error)
    if {name: array.shape for name, array in bad.items()} != SHAPES or not np.isfinite(flat(bad)).all():
        return Trial("harmless", error)
    away = flat(bad) - mean
    share = float((away.conj() @ (x - mean)).real / (away.conj() @ away).real)
    return Trial("harmless", error, f"{share:.2f} of the way from the honest mean to the bad update")


# --- Flower -----------------------------------------------------------------------------------------------------------


def replies(sent: list[tuple[Update, float]]) -> list["Message"]:
    """The clients' replies with these arrays and example counts, as the server receives them."""
    messages = []
    for node, (update, examples) in enumerate(sent, 1):
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(array) for name, array in update.items()}),
                "metrics": MetricRecord({"num-examples": examples, "train_loss": 0.5}),
            }
        )
        instruction = Message(RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)
        messages.append(Message(recorddict_from_proto(recorddict_to_proto(content)), reply_to=instruction))
    return messages


def clipped(start: Update) -> "server.Strategy":
    """FedAvg behind Flower's server-side clipping of updates; it learns the common point as configure_train sets it."""
    wrapper = server.DifferentialPrivacyServerSideFixedClipping(server.FedAvg(), 0.0, CLIP, HONEST + 1)
    wrapper.current_arrays = ArrayRecord({name: Array(array) for name, array in start.items()})
    return wrapper


STRATEGIES = {
    "FedAvg": lambda start: server.FedAvg(),
    "FedMedian": lambda start: server.FedMedian(),
    "FedTrimmedAvg": lambda start: server.FedTrimmedAvg(),
    "Krum": lambda start: server.Krum(num_malicious_nodes=1),
    "MultiKrum": lambda start: server.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=HONEST),
    "FedAvg with clipping": clipped,
}


def one_line(error: Exception) -> str:
    """The exception's name and the first 120 characters of its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}".rstrip(": ")


def trial(strategy: str, change: Callable[[Update], tuple[Update, float]], seed: int, place: int) -> Trial:
    """One aggregation of four honest replies with a bad one at `place`."""
    rng = np.random.default_rng(seed)
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}

    def train() -> Update:
        return {name: (x + SPREAD * rng.normal(size=x.shape)).astype(np.float32) for name, x in start.items()}

    honest = [train() for _ in range(HONEST)]
    bad, examples = change(train())
    sent = [(update, COUNT) for update in honest]
    without_bad, _ = aggregate(strategy, start, replies(sent))
    sent.insert(place, (bad, examples))
    received = replies(sent)
    try:
        result, metrics = aggregate(strategy, start, received)
    except Exception as error:
        return Trial("aborts", None, one_line(error))
    judged = judge(result, honest, without_bad, bad)
    if np.isfinite(metrics["train_loss"]):
        return judged
    return replace(judged, detail="; ".join(filter(None, [judged.detail, "the averaged train_loss is not finite"])))


def aggregate(strategy: str, start: Update, received: list["Message"]) -> tuple[Update, "MetricRecord"]:
    """What `aggregate_train` makes of the replies: the model's arrays and the averaged metrics."""
    with np.errstate(all="ignore"):
        record, metrics = STRATEGIES[strategy](start).aggregate_train(1, received)
    return {name: array.numpy() for name, array in record.items()}, metrics


# --- the table --------------------------------------------------------------------------------------------------------


def told(form: str, trials: dict[tuple[int, int], Trial]) -> str:
    """The trials of one form in words: each outcome, when it comes, and an example of why. Keys: (seed, place)."""
    parts = []
    for outcome in OUTCOMES:
        hits = {key: each for key, each in trials.items() if each.outcome == outcome}
        if not hits:
            continue
        if len(hits) == len(trials):
            when = ""
        elif set(hits) == {key for key in trials if key[1] == 0}:
            when = " when its reply comes first"
        elif set(hits) == {key for key in trials if key[1] > 0}:
            when = " when its reply does not come first"
        else:
            when = f" in {len(hits)} of {len(trials)}"
        detail = max(hits.values(), key=lambda each: each.error or 0).detail
        parts.append(f"{outcome}{when}" + (f" ({detail})" if detail else ""))
    return (f"{form}: " if form else "") + ", ".join(parts)


def row(strategy: str, kind: str) -> tuple:
    """A row of the table: all trials of one kind."""
    forms = {form: {key: trial(strategy, change, *key) for key in TRIALS} for form, change in BAD_UPDATES[kind].items()}
    trials = [each for by_key in forms.values() for each in by_key.values()]
    worst = min((each.outcome for each in trials), key=OUTCOMES.index)
    errors = [each.error for each in trials if each.error is not None]
    largest = f"{round(max(errors), 3):.3g}" if errors else ""
    return strategy, version("flwr"), kind, worst, largest, "; ".join(told(*each) for each in forms.items())


def main() -> None:
    if server is None:
        print(
            "skipped: flwr 1.41 is not installed here; install it in an environment of its own and run this file there"
        )
        return
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = (
        1  # a Message needs it; Flower's runtime sets it
    )
    for strategy, (seed, place) in itertools.product(STRATEGIES, TRIALS):
        control = trial(strategy, arrays(lambda u: u), seed, place)
        if control.outcome not in ("harmless", "refused"):
            sys.exit(f"{strategy}, seed {seed}: five honest clients alone give {control}, so nothing is measured")
    rows = [row(strategy, kind) for strategy in STRATEGIES for kind in BAD_UPDATES]
    with open(TABLE, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(f"flwr {version('flwr')}, numpy {version('numpy')}: {len(rows)} rows in {TABLE.name}")


if __name__ == "__main__":
    main()
