"""A round of a small federation, against the plain way to write it with Flower.

The rival is Flower's quickstart for what is done here: the server sends every trainable array in a message to one
client after another; a client makes its model and its batches anew for each message, trains, and sends all arrays
back. Messages go through Flower's own records, protobuf and bytes, within one process: no network, no start-up of
Flower. Training itself is `local.train` on both sides, so what differs is what is around it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedreft_lib import RunConfig, load_backbone
from fedreft_lib.core.rotation import retract
from fedreft_lib.core.state import State
from fedreft_lib.data import render
from fedreft_lib.data.partition import ClientData
from fedreft_lib.federation.assembly import Federation, adapter_of, assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import steps_per_round
from fedreft_lib.federation.training import train_client as train
from fedreft_lib.federation.work import Work, in_turn
from fedreft_lib.federation.workers import working
from fedreft_lib.model.encoding import AnswerSet
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import encode
from fedreft_lib.seeds import derive
from tests.benchmarks.aggregation import direct
from tests.benchmarks.contest import Contest, Rival, Skipped, timed
from tests.benchmarks.sizes import Size

try:
    from flwr.common import ArrayRecord, MetricRecord, RecordDict
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
except ImportError:
    RecordDict = None

ROUND = 2  # the first is remembered, since other methods begin with it


def contests(size: Size) -> Iterator[Contest | Skipped]:
    for method in ("fedreft", "fedavg"):
        name = f"a round of {method}, 4 clients, 2 steps each"
        if RecordDict is None:
            yield Skipped(name, "flwr is not installed")
            continue
        config = RunConfig(
            backbone=size.backbone, source=size.source, device="cpu", method=method, clients=4, train_size=16,
            held_out_size=1, test_size=1, local_steps=2, schedule_over="round",
        )  # fmt: skip
        federation = assemble(config)
        with working(federation, config, torch.get_num_threads()) as work:
            yield contest(federation, config, name, work)


def contest(federation: Federation, config: RunConfig, name: str, work: Work = in_turn) -> Contest:
    X = start(federation, config)

    def ours() -> Tensor:
        return federated_round(federation, config, X, ROUND, work=work)[0]

    def theirs() -> Tensor:
        return flowers_round(federation, config, X)

    def check() -> str:
        found, expected = ours(), theirs()
        moved, apart = float((found - X).norm()), float((found - expected).norm())
        assert apart < 1e-3 * moved, f"the states move by {moved:.3g} and differ by {apart:.3g}"
        return f"the states move by {moved:.3g} and differ by {apart:.0e}"

    return Contest(name, timed(ours), (Rival("plain Flower", timed(theirs)),), check, most=3)


def flowers_round(federation: Federation, config: RunConfig, X: Tensor) -> Tensor:
    """The server's side: X (N, P) -> X' (N, P)."""
    spec = federation.model.spec
    replies = [
        client_app(sent(spec.named(row)), federation.questions[k], config) for k, row in enumerate(X)
    ]  # one client after another
    states = [reply["arrays"].to_torch_state_dict() for reply in replies]
    counts = torch.tensor([float(reply["metrics"]["num-examples"]) for reply in replies])
    learned = torch.stack([spec.row({name: state[name] for name in spec.named(X[0])}) for state in states])
    if config.method == "fedavg":
        mixed = (counts / counts.sum() @ learned).repeat(len(X), 1)
    else:
        others = torch.stack([direct(learned, k) for k in range(len(X))])
        mixed = (1 - config.mixing) * learned + config.mixing * others
    return torch.stack([spec.row({**state, "R": retract(state["R"], "polar")}) for state in map(spec.named, mixed)])


def client_app(message: "RecordDict", data: ClientData, config: RunConfig) -> "RecordDict":
    """The client's side: a message in, a message out."""
    backbone = load_backbone(config.backbone, config.dtype, config.device)
    model = SteeredModel(backbone, adapter_of(config, backbone))
    sequences = []
    for example in (render(question, config.prompt_format) for question in data.train):
        answer = example.options[example.gold]
        sequences.append(encode(backbone.tokenizer, example.prompt, [answer], max_length=config.max_length))
    trained = train(
        model,
        dict(message["arrays"].to_torch_state_dict()),
        AnswerSet(sequences, None),
        config,
        steps=steps_per_round(len(sequences), config),
        seed=derive(config.seed, "batches", ROUND, data.name),
    )
    return sent(trained.state, len(sequences), sum(trained.losses) / len(trained.losses))


def sent(state: State, examples: int = 0, loss: float = 0.0) -> "RecordDict":
    """A message's content as it arrives: through protobuf and bytes."""
    metrics = MetricRecord({"num-examples": examples, "train_loss": loss})
    message = recorddict_to_proto(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}))
    return recorddict_from_proto(type(message).FromString(message.SerializeToString()))
