"""The classification path: the head is RoBERTa's, and an encoder reads, loses and scores as in transformers."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, RobertaConfig, RobertaForSequenceClassification
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead

from fedreft_lib import LoReFT, RunConfig
from fedreft_lib.core.sites import Sites
from fedreft_lib.data.grading.calibration import calibrated_nll
from fedreft_lib.federation import rounds
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods import METHODS
from fedreft_lib.model import scoring
from fedreft_lib.model.adapters import AtSites
from fedreft_lib.model.encoding import LabelSet
from fedreft_lib.model.heads import Head
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens, encode_pair
from tests.helpers.models import random_backbone

THEIRS = {"head.D": "dense.weight", "head.e": "dense.bias", "head.C": "out_proj.weight", "head.f": "out_proj.bias"}


def roberta_head(d=16, outputs=3, dropout=0.0):
    """transformers' own head with random weights, and the same weights as a state of ours."""
    torch.manual_seed(0)
    config = RobertaConfig(hidden_size=d, num_labels=outputs, classifier_dropout=dropout, num_attention_heads=4)
    theirs = RobertaClassificationHead(config).requires_grad_(False)
    for parameter in theirs.parameters():
        parameter.normal_()
    return theirs, {name: theirs.state_dict()[their] for name, their in THEIRS.items()}


def encoder(kind="roberta", outputs=3):
    """A random encoder, steered by two sites and with a head."""
    backbone = random_backbone(kind)
    return SteeredModel(backbone, AtSites(LoReFT, Sites((0, 2), 2, 0), 2, backbone.hidden_size), Head(32, outputs))


def labelled(model, labels, classes, task="mine"):
    """Labelled pairs of made-up texts of different lengths."""
    texts = [("a b c" * (i + 1), "d e" * (5 - i)) for i in range(len(labels))]
    sequences = [encode_pair(model.backbone.tokenizer, *pair, max_length=40) for pair in texts]
    return LabelSet(sequences, None, labels, classes, [task] * len(labels))


def classifier(model, state):
    """transformers' RoBERTa classifier with the same backbone and head, without any intervention."""
    config = copy.deepcopy(model.backbone.model.config)
    config.num_labels = model.head.outputs
    theirs = RobertaForSequenceClassification(config).eval()  # without the pooler that a bare model has
    theirs.roberta.load_state_dict(model.backbone.model.state_dict(), strict=False)
    theirs.classifier.load_state_dict({their: state[name] for name, their in THEIRS.items()})
    return theirs


def padded(model, data):
    return model.backbone.tokenizer.pad({"input_ids": [list(s.ids) for s in data.sequences]}, return_tensors="pt")


# ---- the head -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_head_is_that_of_roberta_with_its_dropout(dropout):
    theirs, phi = roberta_head(dropout=dropout)
    h = torch.randn(5, 7, 16)
    torch.manual_seed(1)
    expected = theirs.train()(h)
    torch.manual_seed(1)
    assert torch.equal(Head(16, 3).logits(h[:, 0], phi, dropout), expected)
    assert torch.equal(Head(16, 3).logits(h[:, 0], phi), theirs.eval()(h))


@pytest.mark.parametrize(("d", "outputs"), [(1024, 2), (384, 3), (16, 1)])
def test_the_head_has_as_many_numbers_as_that_of_roberta(d, outputs):
    theirs, _ = roberta_head(d, outputs)
    shapes = {name: tuple(theirs.state_dict()[their].shape) for name, their in THEIRS.items()}
    assert Head(d, outputs).shapes == shapes
    assert sum(p.numel() for p in theirs.parameters()) == {1024: 1_051_650, 384: 148_995, 16: 289}[d]


def test_a_fresh_head_is_drawn_as_roberta_draws_it_the_same_for_the_same_seed():
    one, again, other = (Head(200, 2).start(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.D"], other["head.D"])
    assert float(one["head.D"].std()) == pytest.approx(RobertaConfig().initializer_range, rel=0.02)
    assert not one["head.e"].any() and not one["head.f"].any()


# ---- what an encoder reads, loses and scores ------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "classes"), [([0, 2, 1, 2], 3), ([0.5, 4.0, 3.25, 0.0], 0)])
def test_logits_and_losses_are_those_of_transformers_own_classifier(labels, classes):
    model = encoder(outputs=max(classes, 1))
    state = model.start("identity", seed=1)
    data = labelled(model, labels, [classes] * 4)
    theirs = classifier(model, state)
    with torch.no_grad():
        expected = theirs(**padded(model, data), labels=torch.tensor(labels))
        losses = data.losses(model, range(4), state)
    torch.testing.assert_close(scoring.class_outputs(model, state, data, 2), expected.logits)
    torch.testing.assert_close(losses.mean(), expected.loss)
    assert scoring.loss(model, state, data, 3) == pytest.approx(float(expected.loss), rel=1e-5)


def test_a_model_with_token_types_reads_which_text_a_token_is_of_and_one_without_does_not():
    sequences = [Tokens((3, 9, 8, 7, 6), 5, segments=(0, 0, 0, 1, 1)), Tokens((5, 4), 2, segments=(0, 1))]
    ids, mask = torch.tensor([[3, 9, 8, 7, 6], [5, 4, 1, 1, 1]]), torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    types = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]])
    bert, roberta = encoder("bert"), encoder("roberta")
    assert BertConfig().type_vocab_size == bert.backbone.model.config.type_vocab_size == 2
    roberta.backbone.model.config.type_vocab_size = 1
    with torch.no_grad():
        for model, more in ((bert, {"token_type_ids": types}), (roberta, {})):
            assert model.backbone.tokenizer.pad_token_id == 1
            expected = model.backbone.model(input_ids=ids, attention_mask=mask, **more).last_hidden_state
            found = model.hidden_states(model.batch(sequences), None)
            torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])
        found = bert.hidden_states(bert.batch(sequences), None)
        plain = bert.backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
        assert not torch.allclose(found[mask.bool()], plain[mask.bool()])


def test_a_task_of_fewer_classes_than_the_head_has_outputs_knows_only_its_own():
    model = encoder(outputs=3)
    state = {name: tensor.requires_grad_() for name, tensor in model.start("random", seed=1).items()}
    data = labelled(model, [0, 2, 1, 3.5], [2, 3, 2, 0])
    outputs = model.class_logits(data.batch(model, range(4)), state)
    expected = torch.stack(
        [
            nn.functional.cross_entropy(outputs[0, :2], torch.tensor(0)),
            nn.functional.cross_entropy(outputs[1], torch.tensor(2)),
            nn.functional.cross_entropy(outputs[2, :2], torch.tensor(1)),
            (outputs[3, 0] - 3.5) ** 2,
        ]
    )
    losses = data.losses(model, range(4), state)
    torch.testing.assert_close(losses, expected)
    gradients = torch.autograd.grad(losses[[0, 2, 3]].sum(), list(state.values()))
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert not gradients[list(state).index("head.f")][2]  # nobody asked for the third class


def test_a_prediction_is_never_a_class_that_the_task_has_not():
    model = encoder(outputs=3)
    state = model.start("random", seed=1)
    state["head.f"] = torch.tensor([0.0, 50.0, 100.0])  # the third class would always win
    data = labelled(model, [1, 1, 0, 1], [2] * 4)
    config = RunConfig(benchmark="glue", source="local", data_dir="-", tasks=["mine"])
    nll = calibrated_nll(scoring.class_outputs(model, state, data, 8)[:, :2].numpy(), data.labels)
    assert scoring.scores(data, model, state, config) == [
        ("mine", "accuracy", 75.0),
        ("mine", "accuracy", [100.0, 100.0, 0.0, 100.0]),
        ("mine", "calibrated_nll", pytest.approx(nll.mean())),
        ("mine", "calibrated_nll", pytest.approx(nll)),
    ]


# ---- the head in a federation ---------------------------------------------------------------------------------------


def small(**changes) -> RunConfig:
    fields = dict(
        benchmark="glue", backbone="tiny-roberta", source="synthetic", tasks=("rte",), setup="iid", clients=3, rank=1,
        positions="f2", train_size=8, held_out_size=4, test_size=6, batch_size=4, rounds=1, lr=0.01, max_length=32,
    )  # fmt: skip
    return RunConfig(**{**fields, **changes})


def after_one_round(**changes):
    """Each client's head after a round, and the bytes that each sent."""
    config = small(**changes)
    federation = assemble(config)
    X, report = federated_round(federation, config, start(federation, config), 1)
    states = [federation.model.spec.named(row) for row in X]
    sent = [row["uplink_bytes"] for row in report.rows if row["metric"] == "loss"]
    return [{name: state[name] for name in federation.model.layout.head_names} for state in states], sent


@pytest.fixture(scope="module")
def trained():
    heads, sent = after_one_round(method="local")
    assert sent == [0, 0, 0] and not torch.equal(heads[0]["head.D"], heads[1]["head.D"])
    return heads


def mean(heads, name):
    return sum(head[name] for head in heads) / len(heads)


@pytest.mark.parametrize("method", ["fedavg", "fedreft", "fedprox", "fedsa"])
def test_a_private_head_stays_as_its_client_trained_it_and_is_not_sent(method, trained):
    more = {"proximal_mu": 0.0} if method == "fedprox" else {}
    heads, sent = after_one_round(method=method, head="private", **more)
    for head, own in zip(heads, trained, strict=True):
        assert all(torch.equal(head[name], own[name]) for name in own)
    adapter = 4 * (64 if method == "fedsa" else 2 * 64 + 1)  # 4 layers of R, or of R, W and b
    assert sent == [4 * adapter] * 3  # bytes of float32


@pytest.mark.parametrize("method", ["fedavg", "fedreft", "fedsa"])
def test_an_averaged_head_is_the_mean_of_all_whatever_the_method_does_with_the_rest(method, trained):
    heads, sent = after_one_round(method=method, head="averaged", mixing=0.25)
    for head in heads:
        for name in head:
            torch.testing.assert_close(head[name], mean(trained, name))
    _, without = after_one_round(method=method, head="private")
    numbers = 64 * 64 + 64 + 2 * 64 + 2
    assert [more - less for more, less in zip(sent, without, strict=True)] == [4 * numbers] * 3


def test_a_shared_head_is_mixed_like_the_rest(trained):
    heads, _ = after_one_round(method="fedreft", aggregation="mean", head="shared", mixing=0.25)
    for k, head in enumerate(heads):
        others = trained[:k] + trained[k + 1 :]
        for name in head:
            torch.testing.assert_close(head[name], 0.75 * trained[k][name] + 0.25 * mean(others, name))
    averaged, _ = after_one_round(method="fedavg", head="averaged")
    shared, _ = after_one_round(method="fedavg", head="shared")
    for one, other in zip(averaged, shared, strict=True):
        assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_dropout_acts_in_training_alone_and_the_same_way_each_time():
    plain, dropped, again = (
        rounds.run(small(rounds=1, dropout=p, method="local"), progress=False) for p in (0.0, 0.3, 0.3)
    )
    assert torch.equal(dropped.states, again.states) and not torch.equal(plain.states, dropped.states)
    before = torch.random.get_rng_state()
    rounds.run(small(rounds=1, dropout=0.3, method="local", seed=5), progress=False)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's generator is left alone


METHODS = [(name, kind) for name in METHODS for kind in ("loreft", "lora") if name != "centralised"]
METHODS.remove(("fedit", "loreft"))  # FedIT is over lora alone


@pytest.mark.parametrize(("method", "intervention"), METHODS)
def test_every_method_trains_and_averages_a_head(method, intervention, trained):
    heads, _ = after_one_round(method=method, intervention=intervention, head="averaged", rank=2)
    untrained = assemble(small()).model.start("identity", 0)["head.D"]
    for head in heads:
        assert all(bool(tensor.isfinite().all()) for tensor in head.values())
        assert not torch.equal(head["head.D"], untrained)
        if method != "local":
            assert all(torch.equal(head[name], heads[0][name]) for name in head)
