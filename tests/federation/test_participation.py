"""Who takes part, and whose state counts among the others: who drops out, is late, joins, leaves or is not drawn."""

import pytest
import torch

from fedreft_lib import load_run, run
from fedreft_lib.errors import ConfigError, FedReFTError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.participation import away
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import train_clients
from tests.helpers.federations import StoppedError, named, same, small, stop_after

MEAN = {"aggregation": "mean", "mixing": 0.5, "retraction": "raw"}


def finish(config, folder=None):
    return run(config, folder, progress=False)


def trained(config, X, t, k):
    """What client k (from 0) learns in round t from row k of X."""
    federation = assemble(config)
    return federation.model.spec.row(train_clients(federation, config, named(federation, X, [k]), t)[k].state)


def rows_of(report, metric):
    return {int(row["client"][6]): row for row in report.rows if row["metric"] == metric}


@pytest.mark.parametrize(
    ("who", "note"),
    [({"drops": [[2, 1]]}, "dropped out"), ({"joins": [[2, 3]]}, "joins in round 3")],
    ids=["drops out", "has not joined"],
)
def test_who_is_not_there_keeps_its_state_receives_nothing_and_is_nobodys_other(who, note):
    config = small(**MEAN, **who)
    X = start(assemble(config), config)
    after, report = federated_round(assemble(config), config, X, 1)
    assert torch.equal(after[1], X[1])
    learned = {k: trained(config, X, 1, k) for k in (0, 2, 3)}
    for k, own in learned.items():
        others = torch.stack([row for j, row in learned.items() if j != k]).mean(0)
        torch.testing.assert_close(after[k], 0.5 * own + 0.5 * others)
    assert report.M[:, 1].tolist() == [0, 1, 0, 0] and report.M[1].tolist() == [0, 1, 0, 0]
    assert note in rows_of(report, "present")[2]["note"] and rows_of(report, "present")[2]["value"] == 0
    assert 2 not in rows_of(report, "admitted") and 2 not in rows_of(report, "lam")


def test_a_client_that_drops_out_has_trained_and_sent_nothing_and_one_that_is_away_has_not_trained():
    for who, trains in (({"drops": [[2, 1]]}, True), ({"joins": [[2, 2]]}, False)):
        config = small(**who)
        _, report = federated_round(assemble(config), config, start(assemble(config), config), 1)
        losses = rows_of(report, "loss")
        assert (2 in losses) == trains and all(losses[k]["uplink_bytes"] > 0 for k in (1, 3, 4))
        assert not trains or losses[2]["uplink_bytes"] == 0


def test_a_late_update_counts_in_the_next_round_in_place_of_training():
    config = small(**MEAN, late=[[2, 1]])
    federation = assemble(config)
    X = start(federation, config)
    first, report = federated_round(federation, config, X, 1)
    assert torch.equal(first[1], X[1]) and report.M[:, 1].tolist() == [0, 1, 0, 0]
    assert rows_of(report, "loss")[2]["uplink_bytes"] == 0
    second, report = federated_round(federation, config, first, 2, memory=report.memory)
    learned = {k: trained(config, first, 2, k) for k in (0, 2, 3)}
    learned[1] = trained(config, X, 1, 1)  # of the round before, from the state of the round before
    for k, own in learned.items():
        others = torch.stack([row for j, row in learned.items() if j != k]).mean(0)
        torch.testing.assert_close(second[k], 0.5 * own + 0.5 * others)
    assert 2 not in rows_of(report, "loss") and rows_of(report, "admitted")[2]["value"] == 1
    assert rows_of(report, "present")[2]["uplink_bytes"] == 4 * X.shape[1]  # what arrives is counted when it does
    assert not report.memory


@pytest.mark.parametrize("method", ["fedreft", "fedadam"])
def test_a_late_update_survives_a_crash_between_the_rounds(tmp_path, method):
    config = small(method=method, late=[[2, 1], [3, 2]], rounds=3)
    whole = finish(config)
    with pytest.MonkeyPatch.context() as patched, pytest.raises(StoppedError):
        stop_after(patched, 1)
        finish(config, tmp_path)
    assert "late.1" in load_run(tmp_path).memory
    same(finish(config, tmp_path), whole)


def test_one_that_never_reports_stays_where_all_began_and_the_others_go_on_without_it():
    config = small(rounds=3, drops=[[4, 1], [4, 2], [4, 3]])
    done = finish(config)
    begin = start(assemble(config), config)
    assert torch.equal(done.states[3], begin[3])
    assert not any(torch.equal(done.states[k], begin[k]) for k in range(3))
    assert (done.mixing_matrices[:, :3, 3] == 0).all()


def test_a_client_that_joins_begins_with_the_common_start_and_one_that_leaves_keeps_its_last_state():
    config = small(rounds=4, joins=[[1, 3]], leaves=[[2, 2]])
    federation, X = assemble(config), start(assemble(config), config)
    begin, seen = X, []
    for t in range(1, 5):
        X, report = federated_round(federation, config, X, t)
        seen.append((X, report.M))
    assert torch.equal(seen[1][0][0], begin[0]) and not torch.equal(seen[2][0][0], begin[0])
    assert torch.equal(seen[3][0][1], seen[1][0][1])
    listens = [[bool((M[[2, 3], k] > 0).all()) for _, M in seen] for k in (0, 1)]
    assert listens == [[False, False, True, True], [True, True, False, False]]


def test_the_drawn_clients_are_as_many_as_asked_for_differ_by_round_and_depend_on_the_seed_alone():
    config = small(setup="mixed", clients=8, sampled=3, rounds=6)
    drawn = [frozenset(range(8)) - set(away(config, t)) for t in range(1, 7)]
    assert {len(each) for each in drawn} == {3} and len(set(drawn)) > 2
    assert drawn == [frozenset(range(8)) - set(away(config.but(mixing=0.9), t)) for t in range(1, 7)]
    assert drawn != [frozenset(range(8)) - set(away(config.but(seed=1), t)) for t in range(1, 7)]
    often = [sum(k in frozenset(range(8)) - set(away(config, t)) for t in range(1, 401)) for k in range(8)]
    assert all(90 < n < 210 for n in often)  # 150 expected, sd 9.7


def test_a_round_of_some_is_a_round_of_those_alone():
    config = small(setup="mixed", clients=6, sampled=3, rounds=1, **MEAN)
    X = start(assemble(config), config)
    after, report = federated_round(assemble(config), config, X, 1)
    there = sorted(set(range(6)) - set(away(config, 1)))
    learned = {k: trained(config, X, 1, k) for k in there}
    for k in range(6):
        others = [row for j, row in learned.items() if j != k]
        expected = 0.5 * learned[k] + 0.5 * torch.stack(others).mean(0) if k in there else X[k]
        torch.testing.assert_close(after[k], expected)
    assert sum(row["uplink_bytes"] for row in report.rows if row.get("uplink_bytes")) == 3 * 4 * X.shape[1]


@pytest.mark.parametrize("method", ["fedavg", "local", "fedalt", "feddpa", "ffa", "fedsa", "fedsb", "flora", "fedadam",
                                    "fedins", "fedgmm"])  # fmt: skip
def test_every_method_bears_absence_and_resumes_to_the_same_bits(tmp_path, method):
    extra = {"intervention": "lora"} if method == "flora" else {}
    config = small(method=method, drops=[[1, 1]], late=[[2, 1]], joins=[[3, 2]], rounds=3, min_clients=2, **extra)
    if method != "local":
        with pytest.raises(FedReFTError, match="round 1 has 1 admitted updates and needs 2"):
            finish(config)
    config = config.but(drops=[[1, 2]], joins=[])
    whole = finish(config)
    with pytest.MonkeyPatch.context() as patched, pytest.raises(StoppedError):
        stop_after(patched, 2)
        finish(config, tmp_path)
    same(finish(config, tmp_path), whole)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"joins": [[5, 1]]}, "a client from 1 to 4"),
        ({"drops": [[0, 1]]}, "a client from 1 to 4"),
        ({"late": [[1, 9]]}, "a round from 1 to 3"),
        ({"leaves": [[1, 1], [1, 2]]}, "leaves names something twice"),
        ({"sampled": 5}, "sampled must be at most clients = 4"),
        ({"hostile": 4}, "hostile must be below clients = 4"),
        ({"min_clients": 5}, "min_clients must be at most clients = 4"),
        ({"method": "centralised", "sampled": 2}, "centralised has one learner"),
        ({"drops": "1"}, "drops"),
        ({"drops": [[1]]}, "drops"),
    ],
)
def test_what_cannot_be_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        small(rounds=3, **fields)
