"""The round and the run: equal to the bit however they are cut up, and a history that says what happened."""

import pytest
import torch

from fedreft_lib import load_run
from fedreft_lib.core.rotation import orthonormality_error
from fedreft_lib.federation import assembly, training
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.client import common_start
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import train_client as train
from fedreft_lib.model import scoring
from tests.helpers.federations import (
    BASELINES,
    CASES,
    EVERY,
    GLUE,
    NAMES,
    ONCE,
    StoppedError,
    finish,
    fresh,
    rows,
    same,
    small,
    stopped,
    together,
)

# ---- to the bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"mixing": "adaptive"}, {"method": "centralised"}], ids=["adaptive", "centralised"])
def test_two_runs_of_one_config_are_equal_to_the_bit(fields):
    config = small(**fields, eval_every=1)
    assembly._build.cache_clear()  # the questions are drawn and read anew too
    one = finish(config)
    assembly._build.cache_clear()
    torch.manual_seed(1234)
    same(one, finish(config))


@pytest.mark.parametrize(
    ("fields", "after"),
    [(fields, i % 3) for i, fields in enumerate(CASES)] + [({"mixing": "adaptive"}, 1), ({"mixing": "adaptive"}, 2)],
    ids=[*NAMES, "adaptive, 1", "adaptive, 2"],
)
def test_a_run_that_was_stopped_and_resumed_is_the_uninterrupted_one_to_the_bit(tmp_path, fields, after):
    config = small(**fields, eval_every=2)
    whole = fresh(config)
    stopped(config, tmp_path, after)
    assemble(config).memo.clear()
    same(finish(config, tmp_path), whole)
    same(load_run(tmp_path), whole)


@pytest.mark.parametrize("fields", BASELINES, ids=together)
def test_so_it_is_with_every_method(tmp_path, fields):
    config = small(**fields, test_size=2)
    whole = fresh(config)
    stopped(config, tmp_path, 2)
    assemble(config).memo.clear()
    same(finish(config, tmp_path), whole)


def test_what_a_server_remembers_is_kept_with_each_round(tmp_path):
    config = small(method="fedadam")
    federation = assemble(config)
    X, memory = start(federation, config), {}
    for t in (1, 2):
        X, report = federated_round(federation, config, X, t, memory=memory)
        memory = report.memory
    stopped(config, tmp_path, 2)
    found = load_run(tmp_path).memory
    assert set(found) == {"m", "v"} and all(torch.equal(found[name], memory[name]) for name in found)
    assert not torch.equal(
        federated_round(federation, config, X, 3)[0], federated_round(federation, config, X, 3, memory=found)[0]
    )


def test_a_run_that_was_stopped_within_a_round_is_too(monkeypatch, tmp_path):
    config, steps = small(engine="one_by_one"), []
    whole = fresh(config)

    def stop_in_round_2(*args, on_step, **more):
        trained = train(*args, on_step=on_step, **more)
        steps.append(1)
        if len(steps) == 7:  # the third client of the second round
            raise StoppedError
        return trained

    assemble(config).memo.clear()
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(training, "train_client", stop_in_round_2)
        finish(config, tmp_path)
    same(finish(config, tmp_path), whole)


def test_the_untrained_accuracy_that_is_remembered_is_that_of_the_same_batches(monkeypatch):
    def correct(model, state, options, config, share):
        return torch.tensor([config.batch_size == 4]), []  # stands for what other batches round otherwise

    monkeypatch.setattr(scoring, "correct", correct)
    config = small(rounds=0, batch_size=2)
    alone = fresh(config)
    fresh(small(rounds=0, batch_size=4))
    after = finish(config)
    assemble(config).memo.clear()
    same(after, alone)


def test_a_round_is_a_pure_function():
    config = small()
    federation = assemble(config)
    X = start(federation, config) + 0.01 * torch.randn(
        4, federation.model.spec.size, generator=torch.Generator().manual_seed(0)
    )
    before = X.clone()
    one, report = federated_round(federation, config, X, 2)
    torch.manual_seed(5)
    other, again = federated_round(federation, config, X, 2)
    assert torch.equal(one, other) and torch.equal(report.M, again.M) and torch.equal(X, before)
    assert not torch.equal(federated_round(federation, config, X, 3)[0], one)  # other batches


def test_every_client_starts_from_one_state_that_the_seed_alone_decides():
    config = small()
    X = start(assemble(config), config)
    assert torch.equal(X, X[:1].expand(4, -1))
    assert torch.equal(X, start(assemble(small(mixing=0.9)), small(mixing=0.9)))
    assert not torch.equal(X, start(assemble(small(seed=1)), small(seed=1)))


def test_the_mixing_never_changes_the_first_rounds_local_training():
    apart = [fields for fields in CASES if fields != {"method": "centralised"}]
    losses = [rows(fresh(small(**fields, rounds=1)), "loss", "train")["value"].tolist() for fields in apart]
    assert all(each == losses[0] for each in losses) and len(losses[0]) == 4


# ---- what the history says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"method": "fedavg"}, {"method": "centralised"}], ids=str)
def test_bytes_are_those_of_the_states_that_are_exchanged(fields):
    done = finish(small(**fields, rounds=2))
    sends, P = fields.get("method") not in ("local", "centralised"), done.spec.size
    for t in (1, 2):
        table = done.history[done.history["round"] == t]
        assert table["uplink_bytes"].sum() == table["downlink_bytes"].sum() == (4 * P * 4 if sends else 0)
    assert done.history[done.history["round"] == 0][["uplink_bytes", "downlink_bytes"]].sum().sum() == 0


def test_round_0_is_the_bare_backbone():
    config = small(rounds=1, init="random", test_size=20)
    federation, done = assemble(config), finish(config)
    right = [scoring.correct(federation.model, None, client.test[0], config)[0] for client in federation.clients]
    expected = [100 * float(each.double().mean()) for each in right]
    assert done.accuracy(0).tolist() == pytest.approx(expected)
    assert done.accuracy(0).index.tolist() == [c.name for c in federation.clients]


@pytest.mark.parametrize("init", ["identity", "random"])
def test_round_0_with_a_head_is_the_bare_backbone_under_the_untrained_head(init):
    config = small(**{**GLUE, "layers": "all", "rank": 16}, init=init, rounds=0, test_size=40)
    federation, done = assemble(config), finish(config)
    head = {n: t for n, t in common_start(federation.model.layout, config).items() if n.startswith("head.")}
    for client in federation.clients:
        with torch.no_grad():
            h = federation.model.hidden_states(client.test[0].batch(federation.model, range(40)), None)[:, 0]
        said = torch.tanh(h @ head["head.D"].T + head["head.e"]) @ head["head.C"].T + head["head.f"]
        right = said.argmax(1) == torch.tensor(client.test[0].labels)
        assert done.accuracy(0)[client.name] == pytest.approx(100 * float(right.double().mean()))


@pytest.mark.parametrize("method", ["fedreft", "centralised"])
def test_accuracies_are_those_of_each_clients_own_state(method):
    config = small(method=method, rounds=2, test_size=20, union_size=12, eval_every=1)
    federation, done = assemble(config), finish(config)
    for split in ("test", "union"):
        states = done.states if len(done.states) == 4 else done.states.expand(4, -1)
        parts = [c.test[0] if split == "test" else federation.union[0] for c in federation.clients]
        right = [
            scoring.correct(federation.model, federation.model.spec.named(row), part, config)[0]
            for row, part in zip(states, parts, strict=True)
        ]
        expected = [100 * float(each.double().mean()) for each in right]
        assert done.accuracy(split=split).tolist() == pytest.approx(expected)
        assert len(done.accuracy(1, split=split)) == 4


@pytest.mark.parametrize(("eval_every", "when"), [(0, [0, 5]), (1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (9, [0, 5])])
def test_evaluations_come_as_often_as_asked_and_always_first_and_last(eval_every, when):
    done = finish(small(method="local", rounds=5, local_steps=1, test_size=2, eval_every=eval_every))
    assert sorted(rows(done, "accuracy")["round"].unique()) == when


@pytest.mark.parametrize("retraction", ["polar", "qr", "raw"])
def test_the_history_says_how_orthonormal_R_is_and_retraction_makes_it_so(retraction):
    done = finish(small(mixing=0.5, retraction=retraction, lr=0.1, local_steps=6, rounds=2))
    after, before = (rows(done, name) for name in ("orthonormality_error", "orthonormality_error_before_retraction"))
    assert len(after) == len(before) == 8
    assert before["value"].min() > 1e-4  # averages are not orthonormal
    if retraction == "raw":
        assert after["value"].tolist() == before["value"].tolist()
    else:
        assert after["value"].max() < 1e-5
    found = [orthonormality_error(done.spec.named(row)["R"]) for row in done.states]
    assert after[after["round"] == 2]["value"].tolist() == pytest.approx(found)


def test_scheduled_lam_rises_as_said_and_the_matrices_show_it():
    done = finish(small(mixing="scheduled", mixing_range=[0.0, 0.5], rounds=3))
    lam = rows(done, "lam").pivot(index="round", columns="client", values="value")
    assert lam.to_numpy().tolist() == [[0.0] * 4, [0.25] * 4, [0.5] * 4]
    assert done.mixing_matrices.diagonal(dim1=1, dim2=2).tolist() == [[1.0] * 4, [0.75] * 4, [0.5] * 4]
    torch.testing.assert_close(done.mixing_matrices.sum(-1), torch.ones(3, 4))


def test_adaptive_lam_is_the_candidate_with_the_smallest_held_out_loss_and_the_history_shows_the_losses():
    grid = (0.0, 0.25, 0.5, 1.0)
    config = small(mixing="adaptive", mixing_grid=grid, retraction="raw", aggregation="mean", rounds=1)
    federation, done = assemble(config), finish(config)
    sent, _ = federated_round(federation, config.but(method="local"), start(federation, config), 1)
    table = rows(done, "lam").set_index("client")["value"]
    for k, client in enumerate(federation.clients):
        others = torch.stack([sent[j] for j in range(4) if j != k]).mean(0)
        losses = {}
        for lam in grid:
            row = (1 - lam) * sent[k] + lam * others
            losses[lam] = scoring.loss(
                federation.model, federation.model.spec.named(row), client.held_out, config.batch_size
            )
            shown = rows(done, f"loss at lam {lam:g}", "held_out").set_index("client")["value"]
            assert shown[client.name] == pytest.approx(losses[lam], abs=1e-5)
        assert table[client.name] == min(grid, key=losses.__getitem__)
        expected = (1 - table[client.name]) * sent[k] + table[client.name] * others
        torch.testing.assert_close(done.states[k], expected, atol=1e-6, rtol=1e-6)


def test_the_history_gives_lam_as_it_was_given():
    assert set(rows(finish(small(mixing=0.3, rounds=1)), "lam")["value"]) == {0.3}


# ---- every choice runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    {"intervention": "loreft", "init": "random", "dtype": "bfloat16"}, {"intervention": "direft", "setup": "mixed"},
    {"intervention": "noreft", "init": "random", "tied": True, "decayed": [], "weight_decay": 0.1},
    {"intervention": "orthonormal_direft", "init": "random", "positions": "l1", "setup": "iid", "clients": 2},
    {"intervention": "consreft", "init": "random", "layers": "all", "setup": "dirichlet", "clients": 6},
    {"intervention": "lobireft", "init": "random", "clients": 7}, {"clients": 2, "tasks": ["piqa", "siqa"]},
    {"prompt_format": "llm_adapters", "scoring": "generation", "test_size": 2}, {"rounds": 0},
], ids=lambda fields: " ".join(map(str, fields.values())))  # fmt: skip
def test_every_choice_runs_and_ends_with_finite_states_and_accuracies(fields):
    config = small(**{"rounds": 1, "test_size": 3, **fields})
    done = finish(config)
    assert done.states.shape == (config.clients, done.spec.size) and bool(done.states.isfinite().all())
    assert len(done.accuracy()) == config.clients and done.accuracy().between(0, 100).all()
    assert torch.equal(done.states, start(assemble(config), config)) == (config.rounds == 0)


@pytest.mark.parametrize("fields", EVERY, ids=together)
def test_every_method_runs_over_interventions_and_over_lora(fields):
    config = small(**fields, rounds=2, test_size=3, union_size=2)
    done, begun = finish(config), start(assemble(config), config)
    assert done.states.shape == begun.shape and bool(done.states.isfinite().all())
    assert not any(torch.equal(row, first) for row, first in zip(done.states, begun, strict=True))
    for split in ("test", "union"):
        assert len(done.accuracy(split=split)) == 4 and done.accuracy(split=split).between(0, 100).all()
    own = 1 - config.mixing if config.method == "placebo" else 1.0  # whose rest is the start's, which is no client
    torch.testing.assert_close(done.mixing_matrices.sum(-1), torch.full((2, len(begun)), own))
    losses = rows(done, "loss", "train")
    assert losses["value"].between(0, 20).all()


@pytest.mark.parametrize("fields", ONCE, ids=together)
def test_every_method_runs_on_an_encoder_with_a_head(fields):
    config = small(**{**GLUE, **fields}, rounds=1, test_size=2)
    done = finish(config)
    assert bool(done.states.isfinite().all()) and len(done.accuracy()) == 4
    heads = torch.stack([done.spec.named(row)["head.D"] for row in done.states])
    begun = done.spec.named(start(assemble(config), config)[0])["head.D"]
    assert float((heads[0] - begun).abs().max()) > 1e-3  # trained whatever the method
    alike = torch.equal(heads, heads[:1].expand_as(heads))
    assert alike == (fields["method"] != "local")  # averaged by default
