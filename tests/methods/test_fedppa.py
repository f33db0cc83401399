"""FedPPA: clients with different layers keep their own tensors, and are drawn ever more to the means of the layers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch

from fedreft_lib import run
from fedreft_lib.core.training import Recipe, train
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation import participation
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods.entropies import by_entropy, entropy
from fedreft_lib.methods.fedppa import towards_means
from fedreft_lib.methods.uncertainty import scores
from fedreft_lib.model import scoring
from fedreft_lib.model.encoding import AnswerSet, ChoiceSet, LabelSet
from fedreft_lib.model.tokens import Tokens
from tests.helpers.federations import GLUE, fresh, same, small, stopped

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
LAYERS = ("2-2", "2-2", "3-3", "all")
OWN = ({2}, {2}, {3}, {2, 3})


def ppa(**fields):
    return small(**{"method": "fedppa", "retraction": "raw", "test_size": 2, **fields})


def layer_of(place):
    return 2 + place % 2  # layers="2-3"; LoReFT has the sites of the prefix, then those of the suffix


def trained_names(state):
    return [n for n in state if not n.startswith(("kept.", "told.")) and not n.endswith("live")]


# ---- the client -----------------------------------------------------------------------------------------------------


@BOTH
def test_with_mu_zero_each_learns_alone_to_the_bit(intervention):
    local = fresh(small(method="local", intervention=intervention, rounds=2, test_size=2))
    found = fresh(ppa(intervention=intervention, ppa_mu=0.0, rounds=2, retraction="polar"))
    for one, other in zip(local.states, found.states, strict=True):
        named = found.spec.named(other)
        assert all(torch.equal(named[name], tensor) for name, tensor in local.spec.named(one).items())
    assert torch.equal(found.mixing_matrices, local.mixing_matrices)
    assert not torch.equal(fresh(found.config.but(ppa_mu=5.0)).states, found.states)


@pytest.mark.parametrize(("growth", "steps", "left"), [
    ("linear", 4, 0.205078125), ("linear", 1, 0.5), ("constant", 4, (1 - 0.5 * 5 / 8) ** 4), ("constant", 1, 0.5),
])  # fmt: skip
def test_under_sgd_the_distance_to_the_mean_shrinks_as_by_interpolation(growth, steps, left):
    config = ppa(ppa_mu=5.0, ppa_growth=growth)
    G, phi = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 2, 3)
    live = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # the second place is not its own
    recipe = Recipe(lr=0.1, schedule="constant", warmup=0.0, optimiser="sgd", clip=1e9, batch_size=1)
    done = train(
        {"A": phi, "live": live, "kept.mean.A": G}, lambda i, state: 0 * state["A"].sum()[None], 4, recipe,
        steps=steps, seed=0, trains=("A",), penalty=towards_means(config),
    )  # fmt: skip
    torch.testing.assert_close(done.state["A"][0] - G[0], -left * G[0])
    assert not done.state["A"][1].any()


@BOTH
def test_layers_of_others_are_neither_used_nor_moved(learned, intervention):
    config = ppa(intervention=intervention, client_layers=LAYERS, ppa_mu=5.0, local_steps=4)
    federation = assemble(config)
    model, X = federation.model, start(federation, config)
    for name in trained_names(model.spec.named(X[0])):
        model.spec.named(X[0])[f"kept.mean.{name}"].add_(0.1)  # so that there is something to be drawn to
    Y = X.clone()  # with other numbers wherever client 1 has no layer
    scribbled = model.spec.named(Y[0])
    names = trained_names(scribbled)
    for name in names:
        tensor, G = scribbled[name], scribbled[f"kept.mean.{name}"]
        tensor[1::2] = tensor[1::2].flip(1) if name == "R" else tensor[1::2] + 2.0
        G[1::2] -= 3.0
    one, other = (model.spec.named(learned(federation, config, rows)[0]) for rows in (X, Y))
    for name in names:
        begun = model.spec.named(X[0])[name]
        assert torch.equal(one[name][::2], other[name][::2]) and not torch.equal(one[name][::2], begun[::2])
        close = {"atol": 1e-6, "rtol": 0} if name == "R" else {"atol": 0, "rtol": 0}  # R turns by I, to rounding
        torch.testing.assert_close(other[name][1::2], scribbled[name][1::2], **close)
    losses = [scoring.loss(model, state, federation.clients[0].held_out, 4) for state in (one, other)]
    assert losses[0] == losses[1]


# ---- how much a client counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("H", "counts", "expected"), [
    ((0.0, math.log(2), math.log(4)), (5, 1, 1), (0, 1 / 3, 2 / 3)), ((0.0, 0.0, 0.0), (5, 1, 1), (1 / 3,) * 3),
    ((1e30, 0.7, 0.7), (0, 9, 1), (0, 0.5, 0.5)), ((-3.0, 1.0, 3.0), (1, 1, 1), (0, 0.25, 0.75)),
    ((3e38, 3e38, 1.0), (1, 1, 1), (0.5, 0.5, 0)),
])  # fmt: skip
def test_clients_count_by_their_entropies_or_all_the_same_where_there_is_none(H, counts, expected):
    sent = SimpleNamespace(weights=torch.tensor(counts).float(), told={"told.entropy": torch.tensor(H)})
    found = by_entropy(sent)
    torch.testing.assert_close(found / found.sum(), torch.tensor(expected).float(), atol=1e-6, rtol=0)
    assert all((w > 0) == (n > 0) for w, n in zip(found.tolist(), counts, strict=True))


@pytest.mark.parametrize(("labels", "tasks", "expected"), [
    ([1, 1, 1, 1], "aaaa", 0), ([0, 1, 1, 0], "aaaa", math.log(2)), ([0, 1, 2, 3], "aaaa", math.log(4)),
    ([0, 0, 0, 0], "aabb", math.log(2)), ([0, 0, 0, 1], "aaaa", math.log(4) - 0.75 * math.log(3)),
])  # fmt: skip
def test_the_entropy_of_labels_is_that_of_their_shares(labels, tasks, expected):
    prompts = [Tokens((7, 8, 20 + label, 30 + ord(task)), 2, (2,)) for label, task in zip(labels, tasks, strict=True)]
    datas = (
        LabelSet(prompts, None, labels, [4] * 4, list(tasks)),
        ChoiceSet(prompts, None, [torch.ones(4)] * 4, labels, list(tasks), [("x",)] * 4),
        AnswerSet(prompts, None),
    )
    for data in datas:
        found = entropy(None, ppa(), {}, None, {}, SimpleNamespace(train=data), 1)["told.entropy"]
        assert float(found) == pytest.approx(expected, abs=1e-6)


def test_a_regression_has_no_labels_to_count():
    data = LabelSet([Tokens((7, 8), 2, ())], None, [0.5], [0], ["own"])
    with pytest.raises(ConfigError, match="a regression has none"):
        entropy(None, ppa(), {}, None, {}, SimpleNamespace(train=data), 1)


def test_the_entropy_of_predictions_is_of_the_trained_model_and_uniform_is_one(learned):
    config = ppa(ppa_weights="predictions", lr=0.1)
    federation = assemble(config)
    model, X = federation.model, start(federation, config)
    for row, begun, client in zip(learned(federation, config, X), X, federation.clients, strict=True):
        state = model.spec.named(row)
        assert float(state["told.entropy"]) == pytest.approx(mean_entropy(model, state, client.train), rel=1e-4)
        assert float(state["told.entropy"]) != pytest.approx(
            float(scores(model, config, model.spec.named(begun), client.train, "entropy").mean()), rel=1e-4
        )
    equal = config.but(ppa_weights="uniform")
    assert all(model.spec.named(row)["told.entropy"] == 1 for row in learned(federation, equal, X))


def mean_entropy(model, state, data):
    """The mean over items of the mean over answer tokens, one item at a time."""
    found = []
    for i in range(len(data)):
        batch = data.batch(model, [i])
        with torch.no_grad():
            row, source, *_ = batch.targets.unbind(1)
            p = model.logits_at(batch, row * batch.ids.shape[1] + source, state).double().softmax(-1)
        found.append(float(-(p * p.log()).sum(-1).mean()))
    return np.mean(found)


# ---- rounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("intervention", "weights"), [("loreft", "predictions"), ("lora", "labels")])
def test_a_layers_mean_is_over_its_owners_whoever_is_away_late_or_lost(learned, intervention, weights):
    fields = {"client_layers": LAYERS, "ppa_weights": weights, "sampled": 3, "rounds": 5, "lr": 0.05}
    calm = ppa(intervention=intervention, **fields)
    drawn = {t: sorted(set(range(4)) - set(participation.away(calm, t))) for t in range(1, 6)}
    late_one = drawn[1][0]
    lost, when = next((k, t) for t in (3, 4, 5) for k in (2, 3) if {2, 3} & {*drawn[t]} == {k})  # the one with layer 3
    config = calm.but(late=[[late_one + 1, 1]], drops=[[lost + 1, when]])
    federation = assemble(config)
    spec, X, memory, held = federation.model.spec, start(federation, config), {}, {}
    names = trained_names(spec.named(X[0]))
    G = {name: spec.named(X[0])[name].clone() for name in names}
    owners_of_a_place = set()
    for t in range(1, 6):
        trained, before = learned(federation, calm, X, t), X.clone()
        arrived = {
            k: trained[k] for k in drawn[t] if k not in held and (k, t) not in {(late_one, 1), (lost, when)}
        } | held
        held = {late_one: trained[late_one]} if t == 1 else {}
        X, report = federated_round(federation, config, X, t, memory=memory)
        memory = report.memory
        states = {k: spec.named(row) for k, row in arrived.items()}
        for name in names:
            for place in range(len(G[name])):
                owners = [k for k in states if layer_of(place) in OWN[k]]
                H = {k: float(states[k]["told.entropy"]) for k in owners}
                if owners:
                    G[name][place] = sum(H[k] * states[k][name][place] for k in owners) / sum(H.values())
                owners_of_a_place.add(len(owners))
            for k in states:
                after = spec.named(X[k])
                assert torch.equal(after[name], states[k][name])
                torch.testing.assert_close(after[f"kept.mean.{name}"], G[name], atol=1e-6, rtol=1e-5)
        assert all(torch.equal(X[k], before[k]) for k in range(4) if k not in states)
        assert torch.equal(report.M, torch.eye(4).to(report.M))
    assert {0, 1, 2} <= owners_of_a_place


@BOTH
def test_of_equal_layers_and_weights_it_is_the_plain_mean_and_R_is_retracted(learned, intervention):
    config = ppa(intervention=intervention, ppa_weights="uniform", retraction="polar", lr=0.1)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    mean = spec.named(learned(federation, config, X).double().mean(0))
    found = spec.named(federated_round(federation, config, X, 1)[0][0])
    for name in trained_names(mean):
        expected = mean[name]
        if name == "R":
            expected = torch.stack([torch.from_numpy(scipy.linalg.polar(R.numpy())[0]) for R in expected])
            assert float((expected - mean[name]).abs().max()) > 1e-4
        torch.testing.assert_close(found[f"kept.mean.{name}"].double(), expected, atol=1e-6, rtol=1e-5)


def test_an_averaged_head_is_a_mean_by_entropy(learned):
    config = ppa(**{**GLUE, "tasks": ("sst2", "rte"), "setup": "mixed", "layers": "all"}, ppa_weights="predictions")
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    sent = [spec.named(row) for row in learned(federation, config, X)]
    H = np.array([float(state["told.entropy"]) for state in sent])
    found = federated_round(federation, config, X, 1)[0]
    for name in federation.model.layout.head_names:
        expected = sum(h * state[name] for h, state in zip(H / H.sum(), sent, strict=True))
        for row in found:
            torch.testing.assert_close(spec.named(row)[name], expected.float(), atol=1e-6, rtol=1e-5)


@BOTH
def test_a_run_with_three_drawn_one_late_and_one_lost_resumes_to_the_same_bits(tmp_path, intervention):
    config = ppa(intervention=intervention, client_layers=LAYERS, sampled=3, rounds=3, ppa_mu=5.0)
    first, second = (sorted(set(range(4)) - set(participation.away(config, t))) for t in (1, 2))
    lost = next(k for k in second if k != first[0])
    config = config.but(late=[[first[0] + 1, 1]], drops=[[lost + 1, 2]])
    whole = fresh(config)
    stopped(config, tmp_path, 1)
    assemble(config).memo.clear()
    same(run(config, tmp_path, progress=False), whole)


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "said"), [
    ({"client_layers": ("2-2", "2-3", "3-4", "all")}, "'3-4' must be among layers = '2-3'"),
    ({"client_layers": ("2-2", "2-3")}, "an entry for each of 4"),
    ({"benchmark": "arithmetic", "tasks": ("gsm8k",), "clients": 4}, "needs classes or choices, and arithmetic has"),
    ({**GLUE, "tasks": ("stsb",)}, "stsb, a regression, has no classes"),
    ({"sharing": "R"}, "fedppa itself determines"),
])  # fmt: skip
def test_what_has_no_layers_or_entropy_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        ppa(**fields)


@pytest.mark.parametrize("text", ["2-9", "8-9"])
def test_layers_that_the_model_lacks_are_refused_before_any_training(text):
    with pytest.raises(ConfigError, match=f"'{text}' must be among the adapted layers"):
        assemble(ppa(layers="all", client_layers=("0-1", "all", text, "2-3")))


@pytest.mark.parametrize("fields", [{"benchmark": "arithmetic", "tasks": ("gsm8k",)}, {**GLUE, "tasks": ("stsb",)}])
def test_without_labels_all_may_count_equally(fields):
    assert ppa(**fields, ppa_weights="uniform").ppa_weights == "uniform"
