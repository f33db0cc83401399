"""The first part of a round: each client takes the steps that are asked of it, on its own data and no other's."""

import dataclasses

import pytest
import torch

from fedreft_lib import RunConfig
from fedreft_lib.core.interventions import INTERVENTIONS, LoReFT
from fedreft_lib.core.training import train
from fedreft_lib.federation import training
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import participants, steps_per_round, train_client, train_clients
from fedreft_lib.seeds import derive
from tests.helpers.federations import named, small, some_answers
from tests.helpers.models import random_backbone, random_state, steered


@pytest.fixture(scope="module")
def backbone():
    return random_backbone()


# ---- one client -----------------------------------------------------------------------------------------------------


def test_a_client_trains_on_the_loss_of_its_answers_tokens_and_leaves_the_backbone_alone(backbone):
    model, data = steered(backbone, LoReFT, layers=(0, 1)), some_answers()
    state, config = random_state(model), RunConfig(lr=0.01, batch_size=4, weight_decay=0.3)
    weights = [parameter.clone() for parameter in backbone.model.parameters()]

    def losses(indices, phi):
        return -model.answer_logprobs(model.batch([data.sequences[i] for i in indices]), phi)[0]

    found = train_client(model, state, data, config, steps=5, seed=3)
    expected = train(state, losses, len(data), config.recipe, steps=5, seed=3, rotated=("R",))
    assert found.losses == expected.losses and all(torch.equal(found.state[n], expected.state[n]) for n in state)
    for parameter, old in zip(backbone.model.parameters(), weights, strict=True):
        assert torch.equal(parameter, old) and parameter.grad is None


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_the_loss_falls(backbone, name):
    model = steered(backbone, INTERVENTIONS[name], layers=(0, 1), prefix=3, suffix=3)
    config = RunConfig(lr=0.02, batch_size=10, schedule="constant")
    losses = train_client(model, random_state(model), some_answers(), config, steps=25, seed=0).losses
    assert losses[-1] < losses[0] - 0.5


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "fields", "steps"),
    [
        (16, {"batch_size": 8}, 2),
        (17, {"batch_size": 8}, 3),
        (17, {"batch_size": 8, "local_epochs": 3}, 9),
        (17, {"batch_size": 8, "local_epochs": 3, "local_steps": 5}, 5),
        (1, {"batch_size": 8}, 1),
    ],
)
def test_a_round_has_as_many_steps_as_its_epochs_take_or_as_it_is_told(examples, fields, steps):
    assert steps_per_round(examples, RunConfig(**fields)) == steps


@pytest.mark.parametrize("fields", [{}, {"local_epochs": 2}, {"local_steps": 3}])
def test_centralised_takes_as_many_steps_as_all_clients_together_on_everybodys_data(fields):
    config = small(method="centralised", batch_size=3, **fields)
    federation = assemble(config)
    each, (pooled,) = participants(federation, config.but(method="local")), participants(federation, config)
    assert pooled.train.sequences == [s for client in federation.clients for s in client.train.sequences]
    trained = trained_alone(config)
    assert len(trained) == 1 and len(trained[0].losses) == pooled.steps == sum(client.steps for client in each)


def trained_alone(config, memo=None):
    """Local training of the first round, where `memo` is what the federation remembers of others."""
    federation = dataclasses.replace(assemble(config), memo={} if memo is None else memo)
    return train_clients(federation, config, named(federation, start(federation, config)), 1)


def test_local_training_in_a_round_is_train_on_the_clients_own_data():
    config = small(method="local", retraction="raw")
    federation = assemble(config)
    X = start(federation, config)
    found, _ = federated_round(federation, config, X, 2)
    for k, client in enumerate(federation.clients):
        seed = derive(config.seed, "batches", 2, client.name)
        state = federation.model.spec.named(X[k])
        alone = train_client(federation.model, state, client.train, config, steps=2, seed=seed).state
        assert torch.equal(found[k], federation.model.spec.row(alone))


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.02}, {"schedule": "constant"}, {"warmup": 0.6}, {"weight_decay": 0.5}, {"clip": 0.01},
        {"weight_decay": 0.5, "decayed": ["W"]}, {"batch_size": 3}, {"local_steps": 1}, {"local_steps": None},
        {"init": "random"}, {"method": "centralised"}, {"method": "fedprox"},
    ],
    ids=lambda change: " ".join(map(str, change.values())),
)  # fmt: skip
def test_what_is_remembered_of_another_run_changes_nothing(change):
    base = small(local_steps=4, proximal_mu=9.0, weight_decay=0.5 if "decayed" in change else 0.0)
    config, memo = base.but(**change), {}
    alone, other, found = trained_alone(config), trained_alone(base, memo), trained_alone(config, memo)
    for k, expected in alone.items():
        assert found[k].losses == expected.losses
        assert all(torch.equal(found[k].state[name], tensor) for name, tensor in expected.state.items())
    assert any(not torch.equal(other[0].state[n], t) for n, t in alone[0].state.items())  # the change does something


@pytest.mark.parametrize("change", [{"retraction": "raw"}, {"mixing": 0.9}, {"method": "fedavg"}], ids=str)
def test_what_begins_alike_is_trained_once(monkeypatch, change):
    config, memo = small(), {}
    first = trained_alone(config, memo)
    monkeypatch.setattr(training, "_trained", lambda *args: [])  # not called again
    again = trained_alone(config.but(**change), memo)
    assert all(again[k] is first[k] for k in first)
