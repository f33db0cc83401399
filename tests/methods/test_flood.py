"""FLood: items that are unusual to the received state count more, and clients that find theirs unusual count less."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from fedreft_lib import RunConfig
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import train_clients
from fedreft_lib.methods import METHODS
from fedreft_lib.methods import flood as flood_file
from fedreft_lib.methods.uncertainty import scores, unusual
from fedreft_lib.model import scoring
from tests.helpers.federations import GLUE, agreeing, finish, fresh, named, same, small, stopped

# Clients 1, 3 and 4 are drawn in round 1, where 3 is late; it arrives in round 2, where client 1 is lost.
PART = {"sampled": 3, "late": [[3, 1]], "drops": [[1, 2]]}
BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
FLOOD = METHODS["flood"]


def shares(n, confidence, tau):
    told = {"told.confidence": torch.tensor(confidence)}
    config = RunConfig(method="flood", flood_tau=tau)
    weights = FLOOD.weigh(SimpleNamespace(weights=torch.tensor(n), told=told, config=config)).double()
    return (weights / weights.sum()).tolist()


def test_clients_count_by_their_examples_and_confidence():
    n = [4.0, 4.0, 4.0]
    assert shares(n, [-1.0, 0.0, 1.0], 1.0) == pytest.approx([0.0900, 0.2447, 0.6652], abs=5e-5)
    assert shares(n, [-7.0, -5.0, -3.0], 10.0) == pytest.approx([0.3006, 0.3322, 0.3672], abs=5e-5)  # z is the same
    z = (np.array([3.0, 1.0, 8.0]) - 4) / 13**0.5
    expected = np.array([1, 2, 5]) * np.exp(z / 0.5)
    assert shares([1.0, 2.0, 5.0], [3.0, 1.0, 8.0], 0.5) == pytest.approx(expected / expected.sum(), rel=1e-5)
    assert shares([1.0, 2.0, 5.0], [0.1, 0.1, 0.1], 1e-9) == [0.125, 0.25, 0.625]  # no spread but rounding
    assert shares([1.0, 0.0, 5.0, 2.0], [3.0, 1e30, 8.0, 1.0], 0.5)[1] == 0.0  # who was refused is not looked at
    assert shares([1.0, 0.0, 5.0, 2.0], [3.0, 1e30, 8.0, 1.0], 0.5)[0] == pytest.approx((expected / expected.sum())[0])


def test_items_above_the_quantile_count_more_and_the_mean_is_one(monkeypatch):
    config, federation = small(method="flood"), assemble(small())
    monkeypatch.setattr(flood_file, "scores", lambda *args: torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]).double())

    def weights(**changes):
        found = FLOOD.prepare(federation.model, config.but(**changes), {}, federation.clients[0], 1)
        return found["weight"].tolist()

    assert weights() == pytest.approx([5 / 6] * 4 + [5 / 3])
    assert weights(flood_share=0.5, flood_boost=2.0) == pytest.approx([5 / 9] * 3 + [5 / 3] * 2)
    assert weights(flood_share=0.0) == weights(flood_boost=0.0) == [1.0] * 5


def test_a_constant_in_the_logits_changes_the_energy_alone():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    p = scipy.special.softmax(logits.numpy(), axis=1)
    for how, expected in (("entropy", scipy.stats.entropy(p, axis=1)), ("confidence", 1 - p.max(1))):
        np.testing.assert_allclose(unusual(logits, how), expected, rtol=1e-5)
        np.testing.assert_allclose(unusual(logits + 3, how), expected, rtol=1e-5)
    np.testing.assert_allclose(unusual(logits + 3, "energy"), -scipy.special.logsumexp(logits, axis=1) - 3, rtol=1e-5)
    missing = torch.cat([logits, torch.full((6, 1), float("-inf"))], dim=1)  # an item with fewer options
    torch.testing.assert_close(unusual(missing, "entropy"), unusual(logits, "entropy"))


def test_an_answers_score_is_the_mean_entropy_of_its_tokens():
    config = small(method="flood")
    federation = assemble(config)
    data, backbone = federation.clients[1].train, federation.model.backbone
    found = scores(federation.model, config, federation.model.start("identity", 0), data, "entropy")
    for sequence, score in zip(data.sequences, found.tolist(), strict=True):
        with torch.no_grad():  # the identity start is the backbone itself
            logits = backbone.model(input_ids=torch.tensor([sequence.ids])).logits[0].double().numpy()
        p = scipy.special.softmax(logits[sequence.prompt_length - 1 : -1], axis=1)
        assert score == pytest.approx(scipy.stats.entropy(p, axis=1).mean(), rel=1e-3)


def test_a_choice_is_scored_over_its_choices_and_a_label_over_its_classes(decoder):
    config = agreeing(decoder, method="flood")
    federation = assemble(config)
    state, data = federation.model.start("random", 0), federation.clients[0].train
    options = data.option_scores(federation.model, range(len(data)), state).detach().double().numpy()
    expected = scipy.stats.entropy(scipy.special.softmax(options, axis=1), axis=1)
    np.testing.assert_allclose(scores(federation.model, config, state, data, "entropy"), expected, rtol=1e-4)

    config = small(**{**GLUE, "tasks": ("rte", "mnli"), "setup": "mixed"}, method="flood", flood_score="energy")
    federation = assemble(config)
    state, data = federation.model.start("identity", 0), federation.clients[0].train
    outputs = scoring.class_outputs(federation.model, state, data, 4).double().numpy()
    expected = [-scipy.special.logsumexp(row[:n]) for row, n in zip(outputs, data.classes, strict=True)]
    np.testing.assert_allclose(scores(federation.model, config, state, data, "energy"), expected, rtol=1e-4)
    assert set(data.classes) == {2, 3}
    data.classes[:] = [0] * len(data)
    with pytest.raises(ConfigError, match="a regression has none"):
        scores(federation.model, config, state, data, "energy")


@BOTH
def test_without_boost_and_with_a_huge_tau_it_is_fedavg_to_the_bit(intervention):
    fields = {"intervention": intervention, "rounds": 2, "engine": "one_by_one"}
    calm = {"flood_boost": 0.0, "flood_tau": 1e30}
    expected = finish(small(method="fedavg", **fields))

    def adapter(**changes):
        done = finish(small(method="flood", **{**fields, **calm, **changes}))
        return done.spec.columns([name for name in done.spec.names if not name.startswith("told.")], done.states)

    assert torch.equal(adapter(), expected.states)
    for half in ({"flood_boost": 1.0}, {"flood_tau": 1.0}):
        assert not torch.equal(adapter(**half), expected.states)


def test_a_step_goes_down_the_weighted_loss_and_the_mean_is_by_confidence(uneven):
    config = small(
        method="flood", intervention="lora", optimiser="sgd", batch_size=8, local_steps=1, schedule="constant",
        warmup=0.0, clip=1e9, lr=0.5, flood_boost=4.0,
    )  # fmt: skip
    federation = uneven(config)
    model, X = federation.model, start(federation, config)
    states = []
    for client in federation.clients:
        state = {name: tensor.clone().requires_grad_() for name, tensor in model.spec.named(X[0]).items()}
        o = scores(model, config, state, client.train, config.flood_score).numpy()
        weights = np.where(o > np.quantile(o, 0.8), 5.0, 1.0)
        each = torch.cat([w * client.train.losses(model, [i], state) for i, w in enumerate(weights / weights.mean())])
        gradient = torch.autograd.grad(each.mean(), state["q_proj.B"])[0]
        states.append((state["q_proj.B"] - 0.5 * gradient).detach())
    trained = train_clients(federation, config, named(federation, X), 1)
    for expected, each in zip(states, trained.values(), strict=True):
        torch.testing.assert_close(each.state["q_proj.B"], expected.float(), atol=1e-5, rtol=1e-3)
        assert float(expected.abs().max()) > 1e-3
    state = model.spec.named(X[0])
    c = np.array([-scores(model, config, state, each.train, config.flood_score).mean() for each in federation.clients])
    expected = np.array([8, 5, 2, 8]) * np.exp((c - c.mean()) / c.std(ddof=1))
    _, report = federated_round(federation, config, X, 1)
    np.testing.assert_allclose(report.M[2], expected / expected.sum(), rtol=1e-4)


@BOTH
def test_a_run_with_some_away_that_was_stopped_goes_on_to_the_bit(tmp_path, intervention):
    config = small(method="flood", intervention=intervention, test_size=2, **PART)
    whole = fresh(config)
    stopped(config, tmp_path, 1)
    assemble(config).memo.clear()
    same(finish(config, tmp_path), whole)
