"""Lorar: a client counts by how much its loss fell, and where nobody's fell, as in FedAvg."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from fedreft_lib import RunConfig
from fedreft_lib.core.training import Trained
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import train_clients
from fedreft_lib.methods import METHODS
from fedreft_lib.model import scoring
from tests.helpers.federations import GLUE, finish, fresh, named, same, small, stopped

# Clients 1, 3 and 4 are drawn, then 1, 2 and 3, then 1, 2 and 4. Client 3 is late in round 1, 1 is lost in round 2.
PART = {"sampled": 3, "late": [[3, 1]], "drops": [[1, 2]]}
BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
LORAR = METHODS["lorar"]


def shares(n, reductions, **fields):
    told = {"told.reduction": torch.tensor(reductions)}
    config = RunConfig(method="lorar", **fields)
    weights = LORAR.weigh(SimpleNamespace(weights=torch.tensor(n), told=told, config=config)).double()
    return (weights / weights.sum()).tolist()


def adapter(done):
    return done.spec.columns([name for name in done.spec.names if not name.startswith("told.")], done.states)


def test_the_weights_are_the_formulas_numbers():
    n, reductions = [10.0, 40.0, 50.0], [2.0, 0.5, 1.0]
    assert shares(n, reductions) == pytest.approx([0.2222, 0.2222, 0.5556], abs=5e-5)
    assert shares(n, reductions, lorar_counts=False) == pytest.approx([0.5714, 0.1429, 0.2857], abs=5e-5)
    assert shares(n, [0.3, 0.3, 0.3]) == pytest.approx([0.1, 0.4, 0.5])
    assert shares(n, [6e-9, 1.5e-9, 3e-9]) == pytest.approx(shares(n, reductions))  # no unit matters
    assert shares(n, [3e38, 3e38, 3e38]) == pytest.approx([0.1, 0.4, 0.5])


def test_nothing_that_a_client_tells_gives_weight_to_one_that_was_refused_or_takes_it_below_zero():
    for counts in (True, False):
        assert shares([10.0, 0.0, 30.0], [-5.0, 9.0, 1.0], lorar_counts=counts) == [0.0, 0.0, 1.0]
    assert shares([10.0, 0.0, 30.0], [0.0, 9.0, 0.0]) == [0.25, 0.0, 0.75]  # nobody's fell: FedAvg's
    assert shares([10.0, 0.0, 30.0], [0.0, 9.0, 0.0], lorar_counts=False) == [0.25, 0.0, 0.75]


@pytest.mark.parametrize("steps", [2, 4, 8, 16])
def test_the_range_of_losses_that_do_not_fall_grows_with_their_number(steps):
    """Of noise alone: the expected range of as many normal numbers, which pays whoever takes more steps."""
    noise = np.random.default_rng(steps).normal(size=(4000, steps)).tolist()
    config = RunConfig(method="lorar")
    told = [LORAR.after(None, config, {}, Trained({}, losses, 0.0), {}, None, 1) for losses in noise]
    expected = quad(lambda x: 1 - norm.cdf(x) ** steps - norm.sf(x) ** steps, -9, 9)[0]
    assert np.mean([float(each["told.reduction"]) for each in told]) == pytest.approx(expected, abs=0.05)


@BOTH
@pytest.mark.parametrize("gain", ["range", "exact"])
def test_everybody_goes_on_from_the_mean_by_reductions(uneven, intervention, gain):
    config = small(method="lorar", intervention=intervention, lorar_gain=gain, retraction="raw", local_steps=3)
    federation = uneven(config)
    X = start(federation, config)
    found, report = federated_round(federation, config, X, 1)
    trained = train_clients(federation, config.but(method="fedavg"), named(federation, X), 1)
    if gain == "range":
        reductions = [np.ptp(each.losses) for each in trained.values()]
    else:
        losses = [
            [scoring.loss(federation.model, s, client.train, 1) for s in (federation.model.spec.named(X[0]), own.state)]
            for client, own in zip(federation.clients, trained.values(), strict=True)
        ]
        reductions = np.maximum(0, -np.diff(losses)[:, 0])
    weights = np.array([8, 5, 2, 8]) * reductions
    assert max(weights) > 1.1 * min(weights)
    np.testing.assert_allclose(report.M[0], weights / weights.sum(), rtol=2e-3, atol=1e-5)
    for name, tensor in federation.model.spec.named(found[2]).items():
        if not name.startswith("told."):
            mean = sum(w * each.state[name] for w, each in zip(weights / weights.sum(), trained.values(), strict=True))
            torch.testing.assert_close(tensor, mean.float(), atol=2e-5, rtol=1e-3)


def test_a_head_has_the_same_weights():
    config = small(**GLUE, layers="all", method="lorar", local_steps=3)
    federation = assemble(config)
    X = start(federation, config)
    found, report = federated_round(federation, config, X, 1)
    trained = train_clients(federation, config, named(federation, X), 1)
    heads = torch.stack([each.state["head.C"].flatten() for each in trained.values()])
    assert not torch.allclose(report.M[0], torch.full((4,), 0.25), atol=1e-3)
    torch.testing.assert_close(federation.model.spec.named(found[0])["head.C"].flatten(), report.M[0] @ heads)


@BOTH
def test_clients_of_one_step_show_no_reduction_and_average_as_in_fedavg_to_the_bit(intervention):
    fields = {"intervention": intervention, "local_steps": 1}
    found, expected = (finish(small(method=method, **fields)) for method in ("lorar", "fedavg"))
    assert torch.equal(adapter(found), adapter(expected))
    other = finish(small(method="lorar", lorar_gain="exact", **fields))
    assert not torch.equal(adapter(other), adapter(expected))


def test_a_late_client_counts_by_the_reduction_of_the_round_in_which_it_trained():
    config = small(method="lorar", **PART)
    federation = assemble(config)
    X, memory, told = start(federation, config), {}, {}
    for t in (1, 2):
        before = X
        X, report = federated_round(federation, config, X, t, memory=memory)
        memory = report.memory
        told[t] = federation.model.spec.columns(["told.reduction"], X)[:, 0]
    first = train_clients(federation, config, named(federation, start(federation, config), [2]), 1)[2]
    assert float(told[2][2]) == pytest.approx(np.ptp(first.losses)) and not before[2].equal(X[2])
    expected = torch.tensor([0.0, told[2][1], told[2][2], 0.0]) / (told[2][1] + told[2][2])
    torch.testing.assert_close(report.M[1], expected)


@BOTH
def test_a_run_with_some_away_that_was_stopped_goes_on_to_the_bit(tmp_path, intervention):
    config = small(method="lorar", intervention=intervention, test_size=2, **PART)
    whole = fresh(config)
    stopped(config, tmp_path, 1)
    assemble(config).memo.clear()
    same(finish(config, tmp_path), whole)
