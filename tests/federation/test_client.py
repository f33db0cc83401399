"""The client's side of a round by hand: what leaves it, and what it makes of what it receives."""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from fedreft_lib.core.rotation import align
from fedreft_lib.core.training import Trained
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.client import common_start, make_update, sent_names, sent_spec, take_answer
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.model import scoring
from tests.helpers.federations import GLUE, LORA, finish, small
from tests.helpers.layouts import tiny_layout

OWN = {"R": [[[1.0, 0.0]]], "W": [[[2.0, 4.0]]], "b": [[1.0]]}
TOLD = {"R": [[[0.0, 1.0]]], "W": [[[6.0, 0.0]]], "b": [[-3.0]]}
OWN, TOLD = ({name: torch.tensor(numbers) for name, numbers in each.items()} for each in (OWN, TOLD))
QUARTER = {"R": [0.75, 0.25], "W": [3.0, 3.0], "b": [0.0]}  # of the way from OWN to TOLD


def flat(state):
    return {name: tensor.flatten().tolist() for name, tensor in state.items()}


def updated(config, layout=None, state=None, k=0, before=None):
    state = state or OWN
    before = before or {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    trained = Trained(state, [3.0, 1.0, 0.5], 2.0)
    return make_update(
        layout or tiny_layout(), config, k, 1, name="client1", examples=7, before=before, trained=trained
    )


def answered(config, t=1, *, state=OWN, answer=TOLD, layout=None):
    return take_answer(SimpleNamespace(layout=layout or tiny_layout()), config, None, t, state, answer)


# ---- what leaves a client -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ("R", "W", "b")),
        ({"sharing": "R"}, ("R",)),
        ({"sharing": "Wb", "method": "fedavg"}, ("W", "b")),
        ({"method": "fedsa"}, ("R",)),
        ({"method": "ffa"}, ("W", "b")),
        ({"method": "local"}, ()),
        ({"method": "centralised"}, ()),
    ],
    ids=str,
)
def test_an_update_has_the_tensors_that_the_method_sends_and_the_state_has_all(fields, names):
    found = updated(small(**fields))
    assert found.update.client == "client1" and found.update.examples == 7
    assert flat(found.update.state) == {name: flat(OWN)[name] for name in names}
    assert flat(found.state) == flat(OWN) and found.fault is None
    assert (found.loss, found.seconds) == (1.5, 2.0)  # the mean over the steps
    assert sent_spec(tiny_layout(), small(**fields)).names == names


@pytest.mark.parametrize(("head", "sent"), [("averaged", True), ("shared", True), ("private", False)])
def test_the_head_is_sent_too_unless_it_is_private(head, sent):
    names = sent_names(tiny_layout(head=True), small(**GLUE, head=head))
    assert names == ("R", "W", "b", *(("head.D", "head.e", "head.C", "head.f") if sent else ()))
    assert sent_names(tiny_layout(head=True), small(**GLUE, method="local")) == ()


def test_a_client_finds_fault_with_what_it_keeps_and_leaves_what_it_sends_to_the_server():
    spoilt = {**OWN, "W": torch.tensor([[[2.0, math.nan]]])}
    assert updated(small(sharing="R"), state=spoilt).fault == "W has values that are not finite"
    found = updated(small(sharing="Wb"), state=spoilt)
    assert found.fault is None and bool(found.update.state["W"].isnan().any())


def test_a_hostile_client_sends_what_its_attack_says_and_keeps_what_it_learned():
    config = small(hostile=1, attack="sign_flip", attack_scale=3.0, sharing="Wb")
    before = {"R": torch.zeros(1, 1, 2), "W": torch.ones(1, 1, 2), "b": torch.zeros(1, 1)}
    found = updated(config, k=3, before=before)
    assert flat(found.update.state) == {"W": [-2.0, -8.0], "b": [-3.0]}  # 1 - 3 (2 - 1), 1 - 3 (4 - 1), 0 - 3 (1 - 0)
    assert flat(found.state) == {"R": [1.0, 0.0], "W": [-2.0, -8.0], "b": [-3.0]}
    assert flat(updated(config, k=2, before=before).update.state) == {"W": [2.0, 4.0], "b": [1.0]}


def test_with_alignment_the_state_is_turned_to_the_common_start_before_it_is_sent():
    config = small(align=True)
    expected = align(OWN, common_start(tiny_layout(), config))
    assert flat(updated(config).update.state) == flat(expected)
    assert flat(updated(config.but(align=False)).update.state) == flat(OWN)


# ---- what it makes of its answer ------------------------------------------------------------------------------------


def test_a_fixed_share_of_the_answer_is_mixed_in_and_R_is_retracted():
    raw, polar = (answered(small(mixing=0.25, retraction=how)) for how in ("raw", "polar"))
    assert flat(raw.state) == QUARTER and raw.lam == 0.25 and raw.losses == {}
    assert raw.errors == pytest.approx((0.375, 0.375))  # 1 - 0.75^2 - 0.25^2
    assert polar.state["R"].flatten().tolist() == pytest.approx([0.75 / 0.625**0.5, 0.25 / 0.625**0.5])
    assert polar.errors == pytest.approx((0.375, 0.0), abs=1e-6) and flat(polar.state)["W"] == [3.0, 3.0]


def test_what_is_not_in_the_answer_stays():
    found = answered(small(mixing=0.25, sharing="R", retraction="raw"), answer={"R": TOLD["R"]})
    assert flat(found.state) == {**flat(OWN), "R": [0.75, 0.25]}


def test_a_scheduled_share_goes_by_the_round():
    config = small(mixing="scheduled", mixing_range=(0.0, 1.0), rounds=5, retraction="raw")
    found = {t: answered(config, t) for t in range(1, 6)}
    assert [each.lam for each in found.values()] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert flat(found[1].state) == flat(OWN) and flat(found[5].state) == flat(TOLD)
    assert flat(found[2].state) == QUARTER


def test_an_adaptive_share_is_the_candidate_with_the_smallest_loss_on_the_clients_own_held_out_items(monkeypatch):
    asked = []

    def loss(model, state, data, batch_size):
        asked.append((data, batch_size))
        return float((state["b"] + 0.8).square())  # b is 1, 0, -1 and -3 at the candidates

    monkeypatch.setattr(scoring, "loss", loss)
    config = small(mixing="adaptive", mixing_grid=(1.0, 0.0, 0.5, 0.25), retraction="raw")
    client, model = SimpleNamespace(held_out="its own"), SimpleNamespace(layout=tiny_layout())
    found = take_answer(model, config, client, 1, OWN, TOLD)
    assert found.losses == pytest.approx({0.0: 3.24, 0.25: 0.64, 0.5: 0.04, 1.0: 4.84}, abs=1e-6)
    assert found.lam == 0.5 and flat(found.state) == {"R": [0.5, 0.5], "W": [4.0, 2.0], "b": [-1.0]}
    assert asked == 4 * [("its own", config.batch_size)]


def test_an_adaptive_share_may_be_decided_by_the_calibrated_loss(monkeypatch):
    def calibrated(model, states, data, batch_size):
        return [float((state["b"] + 2.9).square()) for state in states]

    monkeypatch.setattr(scoring, "calibrated_losses", calibrated)
    config = small(
        mixing="adaptive",
        mixing_grid=(1.0, 0.0, 0.5, 0.25),
        objective="choice",
        adaptive_by="calibrated",
        retraction="raw",
    )
    client, model = SimpleNamespace(held_out="its own"), SimpleNamespace(layout=tiny_layout())
    assert take_answer(model, config, client, 1, OWN, TOLD).lam == 1.0
    for change, wrong in (({"objective": "answer"}, "needs objective"), ({"held_out_size": 3}, "at least 4, got 3")):
        with pytest.raises(ConfigError, match=wrong):
            config.but(**change)


def test_fedavg_takes_its_answer_whole_and_without_a_server_nothing_is_mixed_in():
    averaged = answered(small(method="fedavg", retraction="raw"))
    assert flat(averaged.state) == flat(TOLD) and averaged.lam == 1.0
    alone = answered(small(method="local"), state={**OWN, "R": 2 * OWN["R"]}, answer=None)
    assert flat(alone.state) == flat(OWN) and alone.lam == 0.0 and alone.errors == pytest.approx((3.0, 0.0), abs=1e-6)


def test_an_averaged_head_is_taken_whole_and_a_shared_one_is_mixed_like_the_rest():
    heads = {name: torch.zeros(shape) for name, shape in tiny_layout(head=True).head.shapes.items()}
    state, answer = {**OWN, **heads}, {**TOLD, **{name: tensor + 4 for name, tensor in heads.items()}}
    for head, value in (("averaged", 4.0), ("shared", 1.0)):
        config = small(**GLUE, head=head, mixing=0.25, retraction="raw")
        found = answered(config, state=state, answer=answer, layout=tiny_layout(head=True))
        assert flat({name: found.state[name] for name in OWN}) == QUARTER
        assert all(set(found.state[name].flatten().tolist()) == {value} for name in heads)


# ---- in a federation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "sharing", "shared"),
    [
        ("fedreft", "full", ("R", "W", "b")), ("fedreft", "R", ("R",)), ("fedavg", "Wb", ("W", "b")),
        ("fedprox", "A", ("A",)), ("fedadam", "B", ("B",)), ("fedreft", "B", ("B",)),
    ],
)  # fmt: skip
def test_what_is_not_shared_stays_as_it_was_learned_and_is_not_paid_for(method, sharing, shared):
    fields = LORA if sharing in "AB" else {}
    config = small(method=method, sharing=sharing, **fields, rounds=1, retraction="raw", proximal_mu=0.0, mixing=0.5)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local", sharing="full"), X, 1)
    found, report = federated_round(federation, config, X, 1)
    bytes_of = 0
    for k in range(4):
        own, after = (spec.named(states[k]) for states in (learned, found))
        for name in own:
            is_shared = name.rsplit(".", 1)[-1] in shared
            assert torch.equal(after[name], own[name]) != is_shared, name
            bytes_of += 4 * own[name].numel() * is_shared
    up, down = (sum(row.get(f"{way}link_bytes", 0) for row in report.rows) for way in ("up", "down"))
    assert up == down == bytes_of
    assert finish(config).manifest["trainable_params"] == spec.size  # all of it is trained


@pytest.mark.parametrize("method", ["fedavg", "fedreft"])
def test_a_round_with_alignment_averages_what_each_client_learned_turned_to_the_common_start(method):
    config = small(method=method, mixing=1.0, aggregation="mean", align=True, retraction="raw", lr=0.1, local_steps=6)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local", align=False), X, 1)
    common = spec.named(X[0])
    found, _ = federated_round(federation, config, X, 1)
    sent = []
    for row in learned:
        state, aligned = spec.named(row), {}
        for s in range(len(state["R"])):
            Q = torch.from_numpy(orthogonal_procrustes(state["R"][s].numpy().T, common["R"][s].numpy().T)[0]).T
            for name in state:
                aligned.setdefault(name, []).append(Q @ state[name][s])
        sent.append(spec.row({name: torch.stack(parts) for name, parts in aligned.items()}))
    sent = torch.stack(sent)
    assert float((sent - learned).abs().max()) > 1e-4
    for k in range(4):
        heard = sent if method == "fedavg" else torch.stack([sent[j] for j in range(4) if j != k])
        torch.testing.assert_close(found[k], heard.mean(0), atol=1e-5, rtol=1e-5)
