"""The server's side of a round by hand: who counts, what each is told, and who listened to whom."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from fedreft_lib import all_but_me, load_run, run
from fedreft_lib.core.state import State
from fedreft_lib.errors import FedReFTError
from fedreft_lib.federation import admission, assembly, training
from fedreft_lib.federation.admission import Update
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.client import ClientResult, ClientUpdate, sent_names
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.server import round_of
from tests.helpers.federations import GLUE, small
from tests.helpers.layouts import tiny_layout

LAYOUT = tiny_layout()
P = LAYOUT.spec.size  # 5
NAMES = [f"client{k}" for k in (1, 2, 3, 4)]
EXAMPLES = [8, 4, 2, 2]
LEARNED = [1.0, 2.0, 4.0, 10.0]  # every number of a client's state, after training; before it is 0


def state_of(value) -> State:
    return LAYOUT.spec.named(torch.full((P,), float(value)))


class Four:
    """Four clients that learn what LEARNED says, and move half of the way to what they are told."""

    names, examples = NAMES, EXAMPLES

    def __init__(self, config, **instead):
        """instead: what clients by their names have in place of their update."""
        self.config, self.instead = config, instead
        self.trained_from, self.told, self.refused, self.unreached = {}, {}, set(), {}

    def update(self, k, **changes):
        names = sent_names(LAYOUT, self.config)
        state = state_of(LEARNED[k])
        sent = Update(NAMES[k], {name: state[name] for name in names}, EXAMPLES[k])
        return dataclasses.replace(ClientUpdate(state, sent, None, 0.5, 0.1), **changes)

    def train(self, before, missed, t, on_step):
        self.trained_from, self.missed = before, missed
        return {k: self.instead.get(NAMES[k]) or self.update(k) for k in before}

    def apply_answers(self, states, answers, refused, t):
        self.told, self.refused = answers, refused
        return {k: self.unreached.get(k) or self.taken(states[k], answers[k]) for k in states}

    def taken(self, state, answer):
        if answer is None:
            return ClientResult(state, 0.0)
        return ClientResult({**state, **{n: (state[n] + told) / 2 for n, told in answer.items()}}, 0.5)


def config_of(**changes):
    return small(**{"aggregation": "mean", "min_clients": 2, "rounds": 3, **changes})


def a_round(clients, config, *, t=1, X=None, who=(0, 1, 2, 3), memory=None):
    X = torch.zeros(len(who), P) if X is None else X
    return round_of(clients, LAYOUT, config, X, list(who), t, memory or {})


def values(X):
    """The one number that each row consists of."""
    assert torch.equal(X, X[:, :1].expand_as(X))
    return X[:, 0].tolist()


def told(clients):
    return {
        k: None if answer is None else values(LAYOUT.spec.row(answer)[None])[0] for k, answer in clients.told.items()
    }


def rows_of(report, metric):
    return {row["client"]: row for row in report.rows if row["metric"] == metric}


def with_value(k, value, config):
    """Client k's update with this number in place of the first of b."""
    update = Four(config).update(k)
    state = {**update.update.state, "b": torch.full_like(update.update.state["b"], value)}
    return dataclasses.replace(update, update=dataclasses.replace(update.update, state=state))


def test_each_is_told_the_mean_of_the_others_whatever_their_examples():
    config = config_of()
    clients = Four(config)
    after, report = a_round(clients, config)
    assert told(clients) == pytest.approx({0: 16 / 3, 1: 15 / 3, 2: 13 / 3, 3: 7 / 3})
    assert values(after) == pytest.approx([(1 + 16 / 3) / 2, (2 + 5) / 2, (4 + 13 / 3) / 2, (10 + 7 / 3) / 2])
    torch.testing.assert_close(report.M, 0.5 * torch.eye(4) + (1 - torch.eye(4)) / 6, check_dtype=False)
    for name in NAMES:
        assert rows_of(report, "admitted")[name]["value"] == 1.0
        assert (
            rows_of(report, "loss")[name]["uplink_bytes"] == rows_of(report, "residual")[name]["downlink_bytes"] == 20
        )
        assert rows_of(report, "lam")[name]["value"] == 0.5
    assert report.memory == {}


def test_fedavg_tells_all_the_mean_by_examples():
    config = config_of(method="fedavg")
    clients = Four(config)
    a_round(clients, config)
    assert told(clients) == pytest.approx(dict.fromkeys(range(4), (8 * 1 + 4 * 2 + 2 * 4 + 2 * 10) / 16))


def test_what_is_not_sent_is_not_told_and_the_server_asks_for_the_rest_alone():
    config = config_of(sharing="Wb")
    clients = Four(config)
    after, report = a_round(clients, config)
    assert {tuple(answer) for answer in clients.told.values()} == {("W", "b")}
    assert LAYOUT.spec.named(after[0])["R"].flatten().tolist() == [1.0, 1.0]  # as it was learned
    assert LAYOUT.spec.named(after[0])["b"].item() == pytest.approx((1 + 16 / 3) / 2)
    assert rows_of(report, "loss")["client1"]["uplink_bytes"] == 12


@pytest.mark.parametrize("spoilt", ["what it sends", "what it keeps"])
def test_a_refused_one_is_nobodys_other_keeps_what_it_had_and_is_told_the_mean_of_all_others(spoilt):
    config = config_of()
    bad = with_value(2, math.nan, config) if spoilt == "what it sends" else Four(config).update(2, fault="R is odd")
    clients = Four(config, client3=bad)
    after, report = a_round(clients, config, X=torch.full((4, P), 0.25))
    assert clients.refused == {2}
    assert told(clients) == pytest.approx({0: 12 / 2, 1: 11 / 2, 2: 13 / 3, 3: 3 / 2})
    assert values(after) == pytest.approx([3.5, 3.75, (0.25 + 13 / 3) / 2, 5.75])
    row = rows_of(report, "admitted")["client3"]
    assert row["value"] == 0 and row["note"] == (
        "b has values that are not finite" if "sends" in spoilt else "R is odd"
    )
    assert report.M[:, 2].tolist() == [0, 0, 0.5, 0] and report.M[2].tolist() == pytest.approx(
        [1 / 6, 1 / 6, 0.5, 1 / 6]
    )


def test_fewer_than_min_clients_end_the_round_in_a_sentence_and_as_many_do_not():
    config = config_of(min_clients=3)
    two_bad = {NAMES[k]: with_value(k, math.inf, config) for k in (0, 2)}
    said = r"round 1 has 2 admitted updates and needs 3 \(client1 b has values that are not finite; client3 b has"
    with pytest.raises(FedReFTError, match=said) as caught:
        a_round(Four(config, **two_bad), config)
    assert "\n" not in str(caught.value)
    clients = Four(config, client1=two_bad["client1"])
    a_round(clients, config)
    assert told(clients) == pytest.approx({0: 16 / 3, 1: 14 / 2, 2: 12 / 2, 3: 6 / 2})
    local = config.but(method="local")  # which needs nobody
    after, _ = a_round(Four(local, **{n: Four(local).update(k, fault="bad") for k, n in enumerate(NAMES)}), local)
    assert values(after) == [0, 0, 0, 0]


def test_a_late_update_arrives_in_the_next_round_in_place_of_training():
    config = config_of(late=[[2, 1]])
    clients = Four(config)
    after, report = a_round(clients, config)
    assert told(clients) == pytest.approx({0: 14 / 2, 2: 11 / 2, 3: 5 / 2}) and values(after)[1] == 0.0
    assert rows_of(report, "loss")["client2"]["uplink_bytes"] == 0 and set(report.memory) == {"late.1"}
    assert report.M[:, 1].tolist() == [0, 1, 0, 0] and report.M[1].tolist() == [0, 1, 0, 0]
    second = Four(config)
    after, report = a_round(second, config, t=2, X=after, memory=report.memory)
    assert set(second.trained_from) == {0, 2, 3}
    assert told(second) == pytest.approx({0: 16 / 3, 1: 15 / 3, 2: 13 / 3, 3: 7 / 3})  # 2 is what it learned in round 1
    assert values(after)[1] == pytest.approx((2 + 5) / 2) and report.memory == {}
    assert rows_of(report, "present")["client2"]["uplink_bytes"] == 20


def test_a_late_update_that_would_be_refused_is_not_kept():
    config = config_of(late=[[2, 1]])
    _, report = a_round(Four(config, client2=with_value(1, math.nan, config)), config)
    assert report.memory == {} and rows_of(report, "present")["client2"]["note"].startswith("late")


@pytest.mark.parametrize("why", ["it dropped out", "it is silent"])
def test_who_sends_nothing_is_told_nothing_and_keeps_its_state(why):
    config = config_of(drops=[[4, 1]]) if why == "it dropped out" else config_of()
    clients = Four(config, **({} if why == "it dropped out" else {"client4": "the line is dead"}))
    after, report = a_round(clients, config, X=torch.full((4, P), 0.25))
    assert told(clients) == pytest.approx({0: 6 / 2, 1: 5 / 2, 2: 3 / 2}) and values(after)[3] == 0.25
    note = rows_of(report, "present")["client4"]["note"]
    assert "dropped out" in note if why == "it dropped out" else "did not answer: the line is dead" in note
    assert "client4" not in rows_of(report, "admitted") and "client4" not in rows_of(report, "lam")


def test_one_that_its_answer_does_not_reach_keeps_its_state_and_listened_to_nobody():
    config = config_of()
    clients = Four(config)
    clients.unreached = {1: "the line is dead"}
    after, report = a_round(clients, config)
    assert values(after) == pytest.approx([(1 + 16 / 3) / 2, 0.0, (4 + 13 / 3) / 2, (10 + 7 / 3) / 2])
    assert report.M[1].tolist() == [0, 1, 0, 0] and report.M[0].tolist() == pytest.approx([0.5, 1 / 6, 1 / 6, 1 / 6])
    assert "keeps its state" in rows_of(report, "answered")["client2"]["note"]


def test_a_round_of_some_numbers_them_by_who_they_are():
    config = config_of()
    clients = Four(config)
    after, report = a_round(clients, config, who=(1, 3))
    assert set(clients.trained_from) == {1, 3} and told(clients) == pytest.approx({1: 10, 3: 2})
    assert values(after) == [6, 6] and report.M[1].tolist() == [0, 0.5, 0, 0.5] and report.M[0].tolist() == [1, 0, 0, 0]


def test_updates_are_clipped_to_the_median_before_they_are_averaged():
    config = config_of(norm_clip=1.0)
    clients = Four(config)
    a_round(clients, config)
    assert told(clients) == pytest.approx({0: 6 / 3, 1: 5 / 3, 2: 5 / 3, 3: 5 / 3})  # no update is longer than 2


def test_who_missed_what_the_server_holds_for_all_begins_with_it():
    config = config_of(method="fedavg", sampled=2, norm_limit=1e6)
    _, report = a_round(Four(config), config, who=(0, 1))
    held = {name: tensor for name, tensor in report.memory.items() if name.startswith("for all.")}
    assert held["for all.W"].flatten().tolist() == pytest.approx(2 * [(1 + (8 * 1 + 4 * 2) / 12) / 2])
    second, X = Four(config), torch.stack([held["for all.b"].flatten().expand(P), torch.zeros(P)])
    _, report = a_round(second, config, t=2, X=X, who=(0, 3), memory=report.memory)
    assert set(second.missed) == {3} and set(rows_of(report, "brought up to date")) == {"client4"}
    assert all(torch.equal(second.trained_from[3][name], second.trained_from[0][name]) for name in ("R", "W", "b"))


# ---- in a federation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "fedreft"])
def test_a_partial_aggregate_is_that_of_the_shared_tensors_alone(method):
    config = small(method=method, sharing="R", retraction="raw", mixing=0.5)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local", sharing="full"), X, 1)
    R = torch.stack([spec.named(row)["R"].reshape(-1) for row in learned])
    expected = all_but_me(R).aggregate if method == "fedreft" else R.mean(0).expand(4, -1)
    lam = 0.5 if method == "fedreft" else 1.0
    found, _ = federated_round(federation, config, X, 1)
    for k in range(4):
        mixed = (1 - lam) * R[k] + lam * expected[k]
        torch.testing.assert_close(spec.named(found[k])["R"].reshape(-1), mixed, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("head", ["averaged", "shared", "private"])
def test_a_head_is_averaged_or_mixed_like_the_rest_or_never_sent(head):
    config = small(**GLUE, head=head, mixing=0.25, aggregation="mean", retraction="raw", train_size=8, rounds=1)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local", head="averaged"), X, 1)
    found, report = federated_round(federation, config, X, 1)
    learned, after = ([spec.named(row) for row in states] for states in (learned, found))
    for name in ("head.D", "head.e", "head.C", "head.f"):
        every = torch.stack([state[name] for state in learned])
        for k in range(4):
            others = torch.stack([every[j] for j in range(4) if j != k]).mean(0)
            expected = {
                "averaged": every.mean(0), "shared": 0.75 * every[k] + 0.25 * others, "private": every[k],
            }[head]  # fmt: skip
            torch.testing.assert_close(after[k][name], expected, atol=1e-6, rtol=1e-6)
    sizes = {name: tensor.numel() for name, tensor in learned[0].items()}
    sent = sum(size for name, size in sizes.items() if head != "private" or "head" not in name)
    up, down = (sum(row.get(f"{way}link_bytes", 0) for row in report.rows) for way in ("up", "down"))
    assert up == down == 4 * 4 * sent


def test_an_averaged_head_weighs_by_examples_and_leaves_out_who_was_not_admitted(monkeypatch):
    config = small(**GLUE, rounds=1, retraction="raw")
    federation = assemble(config)
    clients = [
        dataclasses.replace(c, train=c.train.subset(range(n)))
        for c, n in zip(federation.clients, (8, 6, 2, 4), strict=True)
    ]
    federation = dataclasses.replace(federation, clients=clients, memo={})
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local"), X, 1)
    monkeypatch.setattr(admission, "refusal", lambda update, n, spec: "is bad" if n == 2 else None)
    found, _ = federated_round(federation, config, X, 1)
    D = [spec.named(row)["head.D"] for row in learned]
    for row in found:
        expected = (8 * D[0] + 6 * D[1] + 4 * D[3]) / 18
        torch.testing.assert_close(spec.named(row)["head.D"], expected, atol=1e-6, rtol=1e-6)


# ---- in a run -------------------------------------------------------------------------------------------------------


def spoiled_training(monkeypatch, spoilers):
    """spoilers {(round, place of the client): a function of its update}; the rest trains as always."""
    honest, place = training.train_client, {"calls": 0}

    def train(model, state, data, config, **more):
        trained = honest(model, state, data, config, **more)
        t, k = divmod(place["calls"], config.clients)
        place["calls"] += 1
        update = {name: tensor.clone() for name, tensor in trained.state.items()}
        if (t + 1, k) in spoilers:
            spoilers[t + 1, k](update)
        return dataclasses.replace(trained, state=update)

    monkeypatch.setattr(training, "train_client", train)


@pytest.fixture
def nothing_remembered():
    """Spoiled first rounds must not be remembered for other tests, nor honest ones for these."""
    assembly._build.cache_clear()
    yield
    assembly._build.cache_clear()


def nan(state):
    state["W"].view(-1)[3] = math.nan


@pytest.mark.parametrize(
    ("method", "spoil"),
    [("fedreft", nan), ("fedavg", lambda s: s.pop("b")), ("local", lambda s: s.update(b=s["b"][:1]))],
    ids=["NaN", "missing", "broadcastable"],
)
@pytest.mark.usefixtures("nothing_remembered")
def test_the_round_goes_on_without_a_bad_update(monkeypatch, method, spoil):
    spoiled_training(monkeypatch, {(1, 2): spoil})
    done = run(small(engine="one_by_one", method=method, rounds=2), progress=False)
    history = done.history
    admitted = history[history["metric"] == "admitted"].set_index(["round", "client"])
    refused = admitted[admitted["value"] == 0]
    assert [index[0] for index in refused.index] == [1] and len(admitted) == 8
    assert refused["note"].item() and "client3" in refused.index[0][1]
    assert (admitted[admitted["value"] == 1]["note"] == "").all()
    assert bool(done.states.isfinite().all())
    assert history.query("metric == 'accuracy' and round == 2")["value"].between(0, 100).all()


@pytest.mark.usefixtures("nothing_remembered")
def test_with_fewer_than_two_admitted_the_run_stops_and_its_checkpoint_can_be_continued(monkeypatch, tmp_path):
    config = small(engine="one_by_one", rounds=3)
    whole = run(config, progress=False)
    with monkeypatch.context() as patched:
        assemble(config).memo.clear()
        spoiled_training(patched, {(2, k): nan for k in (0, 1, 3)})
        with pytest.raises(FedReFTError, match="round 2 has 1 admitted updates and needs 2") as stopped:
            run(config, tmp_path, progress=False)
    assert "client1-arc_easy W has values that are not finite" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert load_run(tmp_path).manifest["round"] == 1
    again = run(config, tmp_path, progress=False)
    assert torch.equal(again.states, whole.states)
    plain = [frame.drop(columns="seconds") for frame in (again.history, whole.history)]
    pd.testing.assert_frame_equal(*plain, check_exact=True)
