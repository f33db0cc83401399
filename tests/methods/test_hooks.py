"""What a method may ask of its clients beside their adapters, tried with a method that is made up for this.

Extras, starts of their own, weights of items, reports, states for tests, clients that never train.
"""

from dataclasses import replace

import pytest
import torch

from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.client import sent_names
from fedreft_lib.federation.evaluation import evaluate_all
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import train_client
from fedreft_lib.methods import METHODS
from fedreft_lib.methods.fedavg import FEDAVG
from fedreft_lib.methods.method import Phase
from tests.helpers.federations import finish, fresh, rows, same, small, stopped

EXTRAS = {"told.loss": (1,), "kept.rounds": (2,), "key": (3,)}


def after(model, config, before, trained, prepared, client, t):
    own = float(client.name.removeprefix("client"))
    return {
        "told.loss": torch.tensor([trained.losses[0]]),
        "kept.rounds": before["kept.rounds"] + torch.tensor([1.0, own]),
        "key": torch.full((3,), own),
    }


MADE_UP = replace(
    FEDAVG,
    extras=lambda layout, config: {name: torch.zeros(shape) for name, shape in EXTRAS.items()},
    start=lambda model, config, k, state, client: {"kept.rounds": torch.tensor([0.0, 100.0 * k])},
    after=after,
    weigh=lambda sent: sent.weights * sent.told["told.loss"][:, 0],
)


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setitem(METHODS, "fedavg", MADE_UP)
    assemble(config()).memo.clear()  # it knows methods by their names


def config(**changes):
    return small(method="fedavg", setup="mixed", engine="one_by_one", **changes)


def test_extras_are_kept_reported_or_averaged_as_their_names_say_and_weights_may_follow_the_reports():
    c = config(rounds=1)
    federation = assemble(c)
    spec = federation.model.spec
    X, report = federated_round(federation, c, start(federation, c), 1)
    each = [spec.named(row) for row in X]
    told = torch.stack([state["told.loss"] for state in each])[:, 0]
    assert told.std() > 0
    shares = told / told.sum()  # all have as many examples
    assert [state["kept.rounds"].tolist() for state in each] == [[1.0, 100.0 * k + k + 1] for k in range(4)]
    assert report.M.tolist() == [pytest.approx(shares.tolist())] * 4
    key = float((shares * torch.arange(1.0, 5.0)).sum())
    assert all(state["key"].tolist() == pytest.approx([key] * 3) for state in each)
    sent = sent_names(federation.model.layout, c)
    assert set(spec.names) - set(sent) == {"kept.rounds"} and {"told.loss", "key"} < set(sent)
    size = sum(spec.part(sent).size for _ in range(4))
    uplinks = [r["uplink_bytes"] for r in report.rows if r["metric"] == "loss"]
    downlinks = [r["downlink_bytes"] for r in report.rows if r["metric"] == "residual"]
    assert sum(uplinks) == 4 * size and sum(downlinks) == 4 * (size - 4)  # nobody receives reports


def test_a_run_with_extras_that_was_stopped_goes_on_to_the_bit_and_late_and_absent_clients_keep_theirs(tmp_path):
    c = config(rounds=3, sampled=3, late=[[1, 2]], drops=[[2, 1]])
    whole = finish(c)
    stopped(c, tmp_path, 1)
    same(finish(c, tmp_path), whole)
    present = rows(whole, "loss")["client"].value_counts()
    counted = {k: whole.spec.named(row)["kept.rounds"][0].item() for k, row in enumerate(whole.states, start=1)}
    dropped = rows(whole, "present").query("note == 'dropped out: nothing arrives'")["client"].value_counts()
    assert counted == {k: present.get(f"client{k}", 0) - dropped.get(f"client{k}", 0) for k in counted}


def test_a_report_that_is_not_finite_is_refused_and_hostile_clients_move_only_what_is_averaged(monkeypatch):
    def broken(model, c, before, trained, prepared, client, t):
        found = after(model, c, before, trained, prepared, client, t)
        return {**found, "told.loss": torch.tensor([float("nan")])} if client.name == "client2" else found

    monkeypatch.setitem(METHODS, "fedavg", replace(MADE_UP, after=broken))
    done = fresh(config(rounds=1))
    refused = rows(done, "admitted").query("value == 0")
    assert (
        refused["client"].tolist() == ["client2"]
        and "told.loss has values that are not finite" in refused["note"].iloc[0]
    )
    monkeypatch.setitem(METHODS, "fedavg", MADE_UP)
    honest, attacked = (fresh(config(rounds=1, hostile=n, norm_limit=1e9)) for n in (0, 1))
    named = [[done.spec.named(row)["told.loss"] for row in done.states] for done in (honest, attacked)]
    assert all(map(torch.equal, *named)) and not torch.equal(honest.states, attacked.states)


def test_weights_of_items_multiply_their_losses():
    c = config(optimiser="sgd", clip=1e9, batch_size=3, lr=0.05)
    model, client = assemble(c).model, assemble(c).clients[1]
    state, how = model.start("identity", 1), {"seed": 3, "steps": 2, "trains": ("R", "W", "b")}
    plain = train_client(model, state, client.train, c, **how)
    ones = train_client(model, state, client.train, c, weights=torch.ones(len(client.train)), **how)
    assert all(torch.equal(plain.state[n], ones.state[n]) for n in state)
    double = train_client(model, state, client.train, c, weights=torch.full((len(client.train),), 2.0), **how)
    faster = train_client(model, state, client.train, c.but(lr=0.1), **how)
    for name in state:
        torch.testing.assert_close(double.state[name], faster.state[name], atol=1e-6, rtol=1e-4)
    some = torch.tensor([0.0, 1.0] * (len(client.train) // 2))
    mixed = train_client(model, state, client.train, c, weights=some, **{**how, "steps": 1})
    order = torch.randperm(len(client.train), generator=torch.Generator().manual_seed(3)).tolist()[:3]
    losses = client.train.losses(model, order, state)
    each = torch.tensor([client.train.losses_in(i) for i in order])
    assert mixed.losses[0] == pytest.approx(float((some[order].repeat_interleave(each) * losses).mean()), abs=1e-6)


def test_a_method_that_weighs_items_in_training_goes_one_by_one_whatever_the_engine(monkeypatch):
    weighing = replace(
        MADE_UP,
        prepare=lambda model, c, state, client, t: {"w": torch.arange(float(len(client.train)))},
        phases=lambda names, kind, c, t: [Phase(tuple(names), weights="w")],
    )
    monkeypatch.setitem(METHODS, "fedavg", weighing)
    one, cohort = (fresh(config(rounds=2).but(engine=engine)) for engine in ("one_by_one", "cohort"))
    assert torch.equal(one.states, cohort.states) and cohort.manifest["engine"] == "one_by_one"


def test_clients_are_tested_with_the_state_that_the_method_deploys_and_go_on_with_their_own(monkeypatch):
    plain = fresh(config(rounds=2))
    back = replace(MADE_UP, deploy=lambda model, c, state, client, t: {**state, **model.start("identity", 7)})
    monkeypatch.setitem(METHODS, "fedavg", back)
    done = fresh(config(rounds=2))
    assert torch.equal(done.states, plain.states)
    federation = assemble(config())
    row = federation.model.spec.row(federation.model.start("identity", 7))
    monkeypatch.setitem(METHODS, "fedavg", MADE_UP)
    expected = evaluate_all(federation, config(rounds=2), row[None], 2)
    found = rows(done, "accuracy", "test").query("round == 2")["value"].tolist()
    assert found == [r["value"] for r in expected if r["metric"] == "accuracy" and r["split"] == "test"]


def test_an_unseen_client_never_trains_and_is_tested_with_the_newest_state_for_all():
    c = config(rounds=2, unseen=1, union_size=8)
    done = finish(c)
    assert set(rows(done, "loss")["client"]) == {"client1", "client2", "client3"}
    assert torch.equal(done.states[3], start(assemble(c), c)[3])
    union = rows(done, "accuracy", "union").query("round == 2").set_index("client")["value"]
    assert union["client4"] == union["client1"] and len(union) == 4
    assert torch.equal(done.mixing_matrices[:, 3], torch.eye(4, dtype=done.mixing_matrices.dtype)[3].expand(2, 4))
