"""Each method does what its description says: who trains on what, who listens to whom."""

import dataclasses
import typing

import pytest
import torch

from fedreft_lib import RunConfig, run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods import METHODS
from tests.helpers.federations import small


def finish(config):
    return run(config, progress=False)


def draw(n=5, p=7):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(0))


# ---- a method is a value --------------------------------------------------------------------------------------------


def test_every_method_that_a_config_may_name_is_there_under_its_name():
    assert set(typing.get_args(RunConfig.model_fields["method"].annotation)) == set(METHODS)
    assert all(strategy.name == name for name, strategy in METHODS.items())


def test_nothing_is_sent_where_everybody_learns_alone_or_in_one_place():
    for name in ("local", "centralised"):
        assert METHODS[name].aggregate is None and METHODS[name].mixing(RunConfig()) == 0.0
    assert [name for name, strategy in METHODS.items() if strategy.pools_data] == ["centralised"]


def test_fedavg_weighs_by_examples_leaves_out_who_was_not_admitted_and_is_taken_in_whole():
    X, weights = draw(), torch.tensor([8.0, 0.0, 2.0, 5.0, 1.0])
    found = METHODS["fedavg"].aggregate(X, weights, RunConfig())
    torch.testing.assert_close(found.A, (weights / 16).expand(5, -1))
    torch.testing.assert_close(found.aggregate, ((weights / 16) @ X).expand(5, -1))
    assert METHODS["fedavg"].mixing(RunConfig(mixing=0.2)) == 1.0


@pytest.mark.parametrize("aggregation", ["mean", "geometric_median"])
def test_fedreft_lets_nobody_hear_itself_or_who_was_not_admitted_and_counts_examples_for_nothing(aggregation):
    config = RunConfig(aggregation=aggregation)
    found = METHODS["fedreft"].aggregate(draw(), torch.tensor([8.0, 0.0, 2.0, 5.0, 1.0]), config)
    assert not found.A.diagonal().any() and not found.A[:, 1].any()
    torch.testing.assert_close(found.A.sum(1), torch.ones(5))
    equal = METHODS["fedreft"].aggregate(draw(), torch.tensor([3.0, 0.0, 3.0, 3.0, 3.0]), config)
    assert torch.equal(found.A, equal.A)
    if aggregation == "mean":
        assert found.A[0].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("mixing", [0.2, "scheduled", "adaptive"])
def test_fedreft_takes_in_what_the_config_says(mixing):
    assert METHODS["fedreft"].mixing(RunConfig(mixing=mixing)) == mixing


# ---- in a federation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["mean", "geometric_median"])
def test_fedreft_that_takes_in_nothing_is_local_to_the_bit(aggregation):
    local = finish(small(method="local"))
    none = finish(small(mixing=0.0, aggregation=aggregation))
    assert torch.equal(local.states, none.states)
    assert local.accuracy().tolist() == none.accuracy().tolist()


@pytest.mark.parametrize("mixing", [0.3, 1.0])
def test_with_three_clients_the_two_all_but_me_rules_give_one_run(mixing):
    fields = {"clients": 3, "tasks": ["piqa", "siqa", "boolq"], "mixing": mixing}
    mean, median = finish(small(**fields, aggregation="mean")), finish(small(**fields, aggregation="geometric_median"))
    assert torch.equal(mean.states, median.states)


def test_with_four_clients_they_differ():
    assert not torch.equal(finish(small(aggregation="mean")).states, finish(small()).states)


def uneven(federation):
    """The same federation with clients of 8, 5, 2 and 8 training questions."""
    clients = []
    for client, n in zip(federation.clients, (8, 5, 2, 8), strict=True):
        hidden = client.train.hidden and client.train.hidden[:n]
        part = dataclasses.replace(client.train, sequences=client.train.sequences[:n], hidden=hidden)
        clients.append(dataclasses.replace(client, train=part))
    return dataclasses.replace(federation, clients=clients, memo={})


def test_fedavg_leaves_everybody_with_the_mean_of_what_was_sent_weighted_by_examples():
    config = small(method="fedavg", retraction="raw")
    federation = uneven(assemble(config))
    X = start(federation, config)
    sent, _ = federated_round(federation, config.but(method="local"), X, 1)
    mean, report = federated_round(federation, config, X, 1)
    weights = torch.tensor([8, 5, 2, 8], dtype=torch.float64) / 23
    assert torch.equal(mean, mean[:1].expand(4, -1))
    torch.testing.assert_close(mean[0].double(), weights @ sent.double(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(report.M.double(), weights.expand(4, -1))


@pytest.mark.parametrize("mixing", [0.25, 1.0])
def test_fedreft_leaves_each_with_its_own_and_its_share_of_the_mean_of_the_others(mixing):
    config = small(aggregation="mean", mixing=mixing, retraction="raw")
    federation = uneven(assemble(config))
    X = start(federation, config)
    sent, _ = federated_round(federation, config.but(method="local"), X, 1)
    mixed, report = federated_round(federation, config, X, 1)
    for k in range(4):
        others = torch.stack([sent[j].double() for j in range(4) if j != k]).mean(0)  # equal, whatever their examples
        expected = (1 - mixing) * sent[k].double() + mixing * others
        torch.testing.assert_close(mixed[k].double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(report.M @ sent, mixed, atol=1e-6, rtol=1e-6)
