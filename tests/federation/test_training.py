"""The first part of a round: each client takes the steps that are asked of it, on its own data and no other's."""

import dataclasses
import math

import pytest
import torch

from fedreft_lib import RunConfig
from fedreft_lib.core.interventions import INTERVENTIONS, LoReFT
from fedreft_lib.core.training import train
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation import training
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import participants, steps_per_round, train_client, train_clients
from fedreft_lib.seeds import derive
from tests.helpers.federations import finish, fresh, named, same, small, some_answers, stopped
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


# ---- the learning rate over the rounds ------------------------------------------------------------------------------


def rates(config, monkeypatch):
    """The learning rates of each optimiser of a run, step by step, in the order in which they begin."""
    found, step = {}, torch.optim.AdamW.step

    def noted(own, *args, **more):
        found.setdefault(id(own), (own, []))[1].append(own.param_groups[0]["lr"])
        return step(own, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", noted)
        fresh(config)
    return [each for _, each in found.values()]


def schedule_of(steps, config):
    """A linear schedule of so many steps, written out: it rises over the warm-up and falls to zero after the last."""
    rising = math.ceil(config.warmup * steps)
    return [
        config.lr * ((s + 1) / rising if s < rising else (steps - s) / (steps - rising)) for s in range(steps)
    ]  # fmt: skip


@pytest.mark.parametrize("fields", [
    {"engine": "one_by_one"}, {"engine": "cohort"}, {"engine": "cohort", "dtype": "bfloat16"},
    {"engine": "one_by_one", "method": "centralised"}, {"engine": "one_by_one", "intervention": "lora"},
], ids=str)  # fmt: skip
def test_a_schedule_over_the_rounds_is_one_schedule_cut_into_rounds(fields, monkeypatch):
    config = small(**{"method": "local", "schedule_over": "rounds", "local_steps": 4, "warmup": 0.25, **fields})
    found = rates(config, monkeypatch)
    every = len(found) // config.rounds  # optimisers a round: the clients, or one for the cohort
    assert every == (4 if config.engine == "one_by_one" and config.method != "centralised" else 1)
    n = 4 if config.method != "centralised" else 16
    whole = schedule_of(config.rounds * n, config)
    for t in range(config.rounds):
        for each in found[t * every : (t + 1) * every]:
            assert each == pytest.approx(whole[t * n : (t + 1) * n])
    assert sum(found[i * every][-1] > found[i * every][0] for i in range(config.rounds)) == 1  # one warm-up
    again = rates(config.but(schedule_over="round"), monkeypatch)
    assert all(each == pytest.approx(schedule_of(n, config)) for each in again)


@pytest.mark.parametrize("engine", ["one_by_one", "cohort"])
def test_each_phase_has_a_schedule_of_its_own_steps(engine, monkeypatch):
    """FedDPA: one phase in the first round, then two with half of the steps each."""
    config = small(method="feddpa", schedule_over="rounds", local_steps=4, engine=engine, warmup=0.25)
    found = rates(config, monkeypatch)
    whole, half = schedule_of(12, config), schedule_of(6, config)
    clients = 4 if engine == "one_by_one" else 1
    wanted = [whole[:4]] * clients + [half[2:4]] * 2 * clients + [half[4:]] * 2 * clients
    assert [pytest.approx(each) for each in wanted] == found


def test_a_round_after_the_last_has_no_rate_and_is_refused():
    config = small(schedule_over="rounds", rounds=2)
    federation = assemble(config)
    with pytest.raises(ConfigError, match="ends with round 2, got round 3"):
        federated_round(federation, config, start(federation, config), 3)


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_fed_sbs_first_step_has_the_first_rate_of_the_schedule(rounds, schedule):
    how = {"method": "fedsb", "intervention": "lora", "rank": 3, "warmup": 0.5, "local_steps": 4, "schedule": schedule}
    config = small(**how, rounds=rounds, schedule_over="rounds")
    S = {}
    for each in (config, config.but(schedule_over="round")):
        federation = assemble(each)
        S[each.schedule_over] = federation.model.spec.named(start(federation, each)[0])["q_proj.S"]
    rising = math.ceil(0.5 * 4 * max(rounds, 1))  # the step's rate is lr / rising
    torch.testing.assert_close(S["rounds"] * rising, S["round"] * 2)
    assert float(S["round"].abs().max()) > 0


@pytest.mark.parametrize("fields", [{}, {"method": "feddpa", "engine": "cohort"}, {"method": "fedsb"}], ids=str)
def test_a_run_over_which_the_rate_falls_goes_on_to_the_same_bits(tmp_path, fields):
    config = small(schedule_over="rounds", test_size=2, **fields)
    whole = fresh(config)
    stopped(config, tmp_path, 1)
    assemble(config).memo.clear()
    same(finish(config, tmp_path), whole)
    assert not torch.equal(fresh(config.but(schedule_over="round")).states, whole.states)


def trained_alone(config, memo=None):
    """Local training of the first round, where `memo` is what the federation remembers of others."""
    federation = dataclasses.replace(assemble(config), memo={} if memo is None else memo)
    return train_clients(federation, config, named(federation, start(federation, config)), 1)


def test_local_training_in_a_round_is_train_on_the_clients_own_data():
    config = small(method="local", retraction="raw", schedule_over="round")
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
        {"init": "random"}, {"method": "centralised"}, {"method": "fedprox"}, {"schedule_over": "round"},
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
