"""FedAvg with fine-tuning: one state for all in the federation, and in each client's tests that state trained on."""

import pytest
import torch

from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.evaluation import evaluate_all
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import finish, fresh, rows, same, small, stopped

# Clients 1, 3 and 4 are drawn in round 1, where 3 is late; it arrives in round 2, where client 1 is lost.
PART = {"sampled": 3, "late": [[3, 1]], "drops": [[1, 2]]}
BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
NLL = "calibrated_nll"


def scored(found, metric=NLL):
    return [row["value"] for row in found if row["metric"] == metric and row["split"] == "test"]


@BOTH
def test_without_steps_it_is_fedavg_to_the_bit(intervention):
    fields = {"intervention": intervention, "rounds": 2, "union_size": 4, "eval_every": 1}
    found, expected = finish(small(method="tuned", tune_steps=0, **fields)), finish(small(method="fedavg", **fields))
    assert torch.equal(found.states, expected.states)
    values = [each.history.drop(columns=["seconds"]).values.tolist() for each in (found, expected)]
    assert repr(values[0]) == repr(values[1])


@BOTH
@pytest.mark.parametrize("steps", [None, 3])
def test_each_client_is_tested_with_the_common_state_after_steps_on_its_own_items(intervention, steps):
    """A batch holds all items, so that local training has no other batches than the tuning."""
    fields = {"intervention": intervention, "batch_size": 8, "local_steps": 2, "lr": 0.05, "rounds": 2, "union_size": 4}
    found = finish(small(method="tuned", tune_steps=steps, **fields))
    plain = finish(small(method="fedavg", **fields))
    assert torch.equal(found.states, plain.states)  # what the federation learns does not change
    alone = {"method": "local", "retraction": "raw", "schedule_over": "round"}
    config = small(**alone, **{**fields, "local_steps": steps or 2})
    federation = assemble(config)
    X, _ = federated_round(federation, config, plain.states, 9)
    expected = evaluate_all(federation, config, X, 2)
    for split in ("test", "union"):
        values = [row["value"] for row in expected if row["metric"] == NLL and row["split"] == split]
        last = rows(found, NLL, split).query("round == 2")["value"].tolist()
        assert last == pytest.approx(values, rel=1e-4)
        assert last != pytest.approx(rows(plain, NLL, split).query("round == 2")["value"].tolist(), rel=1e-3)


def test_a_client_that_never_took_part_is_tuned_from_the_newest_state():
    fields = {"batch_size": 8, "local_steps": 2, "lr": 0.05, "rounds": 2, "unseen": 1}
    found = finish(small(method="tuned", **fields))
    config = small(method="local", retraction="raw", schedule_over="round", **{**fields, "unseen": 0})
    newest = {name.removeprefix("for all."): tensor for name, tensor in found.memory.items()}
    X = torch.stack([found.spec.row(newest)] * 4)
    assert torch.equal(found.states[0], X[0]) and not torch.equal(found.states[3], X[0])
    federation = assemble(config)
    expected = scored(evaluate_all(federation, config, federated_round(federation, config, X, 9)[0], 2))
    last = rows(found, NLL, "test").query("round == 2")["value"].tolist()
    assert last == pytest.approx(expected, rel=1e-4)


@BOTH
def test_a_run_with_some_away_that_was_stopped_goes_on_to_the_bit(tmp_path, intervention):
    config = small(method="tuned", intervention=intervention, test_size=2, eval_every=1, dropout=0.1, **PART)
    whole = fresh(config)
    assert torch.equal(whole.states, finish(config.but(method="fedavg")).states)
    stopped(config, tmp_path, 1)
    assemble(config).memo.clear()
    same(finish(config, tmp_path), whole)
