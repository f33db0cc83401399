"""Every update is looked at before it touches anyone; one that is refused hurts nobody but its round."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from fedreft_lib import load_run, run
from fedreft_lib.core.state import Spec
from fedreft_lib.errors import FedReFTError
from fedreft_lib.federation import assembly, training
from fedreft_lib.federation.admission import Update, refusal, refusals
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from tests.helpers.federations import small

SPEC = Spec.of({"R": (2, 3, 8), "W": (2, 3, 8), "b": (2, 3)})


def good():
    return {name: torch.randn(shape) for name, shape in SPEC.shapes}


def with_one(name, value):
    def spoil(state):
        state[name].view(-1)[3] = value

    return spoil


BAD = {
    "NaN": (with_one("W", math.nan), 8, "W has values that are not finite"),
    "one NaN in R": (with_one("R", math.nan), 8, "R has values that are not finite"),
    "Inf": (with_one("b", math.inf), 8, "b has values that are not finite"),
    "-Inf": (with_one("b", -math.inf), 8, "b has values that are not finite"),
    "turned": (lambda s: s.update(W=s["W"].mT), 8, "W has the shape"),
    "flat": (lambda s: s.update(W=s["W"].reshape(-1)), 8, "W has the shape"),
    "would broadcast": (lambda s: s.update(b=s["b"][:1]), 8, "b has the shape"),
    "a number": (lambda s: s.update(b=torch.tensor(1.0)), 8, "b has the shape"),
    "one site too many": (lambda s: s.update(b=torch.zeros(3, 3)), 8, "b has the shape"),
    "empty": (lambda s: s.update(b=torch.zeros(0, 3)), 8, "b has the shape"),
    "integer": (lambda s: s.update(b=torch.ones(2, 3, dtype=torch.int64)), 8, "torch.int64"),
    "boolean": (lambda s: s.update(b=torch.ones(2, 3, dtype=torch.bool)), 8, "torch.bool"),
    "complex": (lambda s: s.update(b=torch.ones(2, 3, dtype=torch.complex64)), 8, "torch.complex64"),
    "float64": (lambda s: s.update(b=s["b"].double()), 8, "torch.float64"),
    "bfloat16": (lambda s: s.update(b=s["b"].bfloat16()), 8, "torch.bfloat16"),
    "missing": (lambda s: s.pop("W"), 8, "has the tensors"),
    "extra": (lambda s: s.update(head=torch.zeros(1)), 8, "has the tensors"),
    "renamed": (lambda s: s.update(w=s.pop("W")), 8, "has the tensors"),
    "nothing": (lambda s: s.clear(), 8, "has the tensors"),
    "no examples": (lambda s: None, 0, "its example count is 0"),
    "negative examples": (lambda s: None, -3, "its example count is -3"),
    "NaN examples": (lambda s: None, math.nan, "its example count is nan"),
    "infinite examples": (lambda s: None, math.inf, "its example count is inf"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_update_is_refused_with_its_reason(kind):
    spoil, examples, reason = BAD[kind]
    state = good()
    spoil(state)
    found = refusal(state, examples, SPEC)
    assert found is not None and reason in found and "\n" not in found


@pytest.mark.parametrize("examples", [1, 128, 0.5])
def test_a_good_update_is_admitted(examples):
    assert refusal(good(), examples, SPEC) is None
    assert refusal({n: torch.full_like(t, 1e30) for n, t in good().items()}, examples, SPEC) is None
    assert refusal({n: t.mT.contiguous().mT for n, t in good().items()}, examples, SPEC) is None  # another layout


def test_what_is_admitted_can_be_used():
    backwards = dict(reversed(good().items()))
    if refusal(backwards, 8, SPEC) is None:
        SPEC.row(backwards)


# ---- in a federation ------------------------------------------------------------------------------------------------


def one_by_one(**fields):
    return small(engine="one_by_one", **fields)


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


@pytest.fixture(autouse=True)
def nothing_remembered():
    """Spoiled first rounds must not be remembered for other tests, nor honest ones for these."""
    assembly._build.cache_clear()
    yield
    assembly._build.cache_clear()


NAN = with_one("W", math.nan)


@pytest.mark.parametrize("method", ["fedreft", "fedavg", "local"])
@pytest.mark.parametrize(
    "spoil", [NAN, lambda s: s.pop("b"), lambda s: s.update(b=s["b"][:1])], ids=["NaN", "missing", "broadcastable"]
)
def test_the_round_goes_on_without_a_bad_update(monkeypatch, method, spoil):
    spoiled_training(monkeypatch, {(1, 2): spoil})
    done = run(one_by_one(method=method, rounds=2), progress=False)
    history = done.history
    admitted = history[history["metric"] == "admitted"].set_index(["round", "client"])
    refused = admitted[admitted["value"] == 0]
    assert [index[0] for index in refused.index] == [1] and len(admitted) == 8
    assert refused["note"].item() and "client3" in refused.index[0][1]
    assert (admitted[admitted["value"] == 1]["note"] == "").all()
    assert bool(done.states.isfinite().all())
    assert history.query("metric == 'accuracy' and round == 2")["value"].between(0, 100).all()


def test_a_client_that_is_set_aside_is_nobodys_other_goes_on_from_its_old_state_and_still_receives(monkeypatch):
    config = one_by_one(method="fedreft", aggregation="mean", mixing=0.5, rounds=1, retraction="raw")
    honest = run(config.but(method="local"), progress=False).states
    begun = start(assemble(config), config)
    assemble(config).memo.clear()
    spoiled_training(monkeypatch, {(1, 2): NAN})
    done = run(config, progress=False)
    learned = honest.clone()
    learned[2] = begun[2]
    others = {0: [1, 3], 1: [0, 3], 2: [0, 1, 3], 3: [0, 1]}
    for k, those in others.items():
        expected = 0.5 * learned[k] + 0.5 * learned[those].mean(0)
        torch.testing.assert_close(done.states[k], expected, atol=1e-6, rtol=1e-6)
    M = done.mixing_matrices[0]
    assert M[[0, 1, 3], 2].tolist() == [0, 0, 0] and float(M[2, 2]) == 0.5


def test_with_fewer_than_two_admitted_the_run_stops_and_its_checkpoint_can_be_continued(monkeypatch, tmp_path):
    config = one_by_one(rounds=3)
    whole = run(config, progress=False)
    with monkeypatch.context() as patched:
        assemble(config).memo.clear()
        spoiled_training(patched, {(2, k): NAN for k in (0, 1, 3)})
        with pytest.raises(FedReFTError, match="round 2 has 1 admitted updates and needs 2") as stopped:
            run(config, tmp_path, progress=False)
    assert "client1-arc_easy W has values that are not finite" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert load_run(tmp_path).manifest["round"] == 1
    again = run(config, tmp_path, progress=False)
    assert torch.equal(again.states, whole.states)
    plain = [frame.drop(columns="seconds") for frame in (again.history, whole.history)]
    pd.testing.assert_frame_equal(*plain, check_exact=True)


def test_with_all_refused_the_run_stops_where_others_are_needed_and_goes_on_where_not(monkeypatch):
    spoiled_training(monkeypatch, {(1, k): NAN for k in range(4)})
    local = run(one_by_one(method="local", rounds=1), progress=False)
    assert bool(local.states.isfinite().all())
    assert (local.history.query("metric == 'admitted'")["value"] == 0).all()


# ---- against the cohort ---------------------------------------------------------------------------------------------


def moved(size, examples=8, seed=0):
    """An update at the distance `size` from zero."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(SPEC.size, generator=generator)
    return Update("client", SPEC.named(row * (size / row.norm())), examples)


def judged(*updates, norm_limit=30.0, train_size=8):
    zero = SPEC.named(torch.zeros(SPEC.size))
    return refusals(updates, [zero] * len(updates), SPEC, norm_limit, train_size)


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_an_update_much_longer_than_the_cohorts_is_set_aside_and_nobody_else(n):
    honest = [moved(1.0 + 0.01 * i, seed=i) for i in range(n - 1)]
    for length, refused in ((29.0, False), (40.0, True), (1e18, True), (1e30, True)):
        *others, last = judged(*honest, moved(length))
        assert others == [None] * (n - 1) and bool(last) == refused
        assert not last or "norm" in last


def test_almost_half_of_the_cohort_cannot_hide_behind_each_other():
    found = judged(*[moved(1.0, seed=i) for i in range(4)], *[moved(1e6, seed=i) for i in range(3)])
    assert [reason is None for reason in found] == [True] * 4 + [False] * 3


@pytest.mark.parametrize(("examples", "refused"), [(8000, False), (8001, True), (1e12, True), (2.0**63, True)])
def test_a_count_out_of_all_proportion_is_set_aside(examples, refused):
    assert bool(judged(moved(1), moved(1), moved(1, examples))[-1]) == refused


def test_a_client_that_brings_as_many_as_it_may_beside_very_small_ones_is_admitted():
    few = [moved(1, examples=2) for _ in range(3)]
    assert judged(*few, moved(1, examples=5000), train_size=5000) == [None] * 4
    assert "example count" in judged(*few, moved(1, examples=5001), train_size=5000)[-1]


def test_where_most_stand_still_one_that_moves_a_little_is_admitted():
    start = SPEC.named(torch.ones(SPEC.size))
    step = Update("client", SPEC.named(torch.ones(SPEC.size) + 0.01), 8)
    still = Update("client", start, 8)
    assert refusals([still, still, step], [start] * 3, SPEC, 30.0, 8) == [None] * 3
