"""Runs that go in step end where each ends alone, whatever they share and wherever they are stopped."""

import json

import pytest
import torch
from filelock import FileLock

from fedreft_lib import load_run, run
from fedreft_lib.core.interventions import INTERVENTIONS
from fedreft_lib.errors import ConfigError, FedReFTError
from fedreft_lib.federation import together as module
from fedreft_lib.federation import training
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.together import run_together
from fedreft_lib.federation.training import train_runs
from fedreft_lib.runs.store import Store
from tests.helpers.federations import StoppedError, agreeing, computes, fresh, same, small, stop_after

STUDY = [
    {}, {"seed": 1}, {"mixing": 0.0}, {"mixing": "adaptive"}, {"method": "fedavg"}, {"method": "local", "seed": 1},
    {"method": "centralised"}, {"method": "feddpa"}, {"method": "fedalt"},
    {"late": [[2, 1]], "joins": [[3, 2]]}, {"leaves": [[1, 1]]}, {"drops": [[4, 2]]}, {"rounds": 1}, {"rounds": 0},
    {"hostile": 1, "attack": "sign_flip"}, {"schedule_over": "rounds"}, {"clients": 6, "method": "fedadam"},
]  # fmt: skip


def close(found, expected):
    """The same run up to rounding: states, accuracies, and who was there."""
    assert found.config == expected.config
    way = (found.states - expected.states).norm(dim=1) / expected.states.norm(dim=1)
    assert float(way.max()) < 1e-4
    tables = [r.history[~r.history["metric"].isin(["loss", "residual"])] for r in (found, expected)]
    names = ["round", "client", "split", "metric", "uplink_bytes"]
    assert tables[0][names].fillna(-1).to_numpy().tolist() == tables[1][names].fillna(-1).to_numpy().tolist()
    assert tables[0]["value"].tolist() == pytest.approx(tables[1]["value"].tolist(), abs=2e-4, nan_ok=True)
    torch.testing.assert_close(found.mixing_matrices, expected.mixing_matrices, atol=1e-4, rtol=0)


@pytest.fixture
def every_round_is_written(monkeypatch):
    monkeypatch.setattr(module, "WRITTEN", 1)


def passes(monkeypatch):
    """How many clients train in each pass from here on."""
    found, trained = [], training._trained

    def counted(model, config, states, *args, **more):
        found.append(len(states))
        return trained(model, config, states, *args, **more)

    monkeypatch.setattr(training, "_trained", counted)
    return found


def test_a_study_in_step_is_the_study_run_by_run(decoder, tmp_path):
    configs = [agreeing(decoder, **fields) for fields in STUDY]
    found = run_together(configs, tmp_path, progress=False)
    for config, done in zip(configs, found, strict=True):
        close(done, fresh(config))
        if config.rounds:
            same(load_run(tmp_path / config.run_id), done)
        assert done.manifest["engine"] == "last_token" and done.manifest["round"] == config.rounds


ALIKE_IN_SHAPE = [
    [{"layers": [1, 2]}, {"layers": [1, 3]}],
    [{"intervention": name, "init": "random"} for name in INTERVENTIONS if INTERVENTIONS[name].maps],
    [{"method": "feddpa", "dpa_share": share} for share in (0.2, 0.9)],
    [{"method": "fedprox", "proximal_mu": mu} for mu in (0.1, 20.0)],
    [{"lr": lr} for lr in (0.001, 0.05)],
    [{"schedule_over": over} for over in ("round", "rounds")],
    [{"schedule_over": "rounds", "rounds": rounds} for rounds in (2, 3)],
    [{"agreement": share} for share in (0.5, 1.0)],
]


@pytest.mark.parametrize("fields", ALIKE_IN_SHAPE, ids=str)
def test_runs_whose_states_have_equal_shapes_are_trained_each_by_its_own_config(decoder, fields):
    configs = [agreeing(decoder, **each) for each in fields]
    found = run_together(configs, progress=False)
    for config, done in zip(configs, found, strict=True):
        close(done, fresh(config))
    assert all(float((found[0].states - done.states).norm()) > 1e-3 for done in found[1:])


def test_clients_of_all_runs_that_train_alike_share_a_pass(decoder, monkeypatch):
    alike = [agreeing(decoder, seed=0, mixing=mixing) for mixing in (0.0, 0.5)] + [agreeing(decoder, method="fedavg")]
    counted = passes(monkeypatch)
    run_together([*alike, agreeing(decoder, lr=0.001)], progress=False)
    assert sorted(counted) == [4, 4, 12, 12]  # two rounds
    counted.clear()
    monkeypatch.setattr("fedreft_lib.federation.engine.LAST_TOKENS", 32)  # eight batches of four
    run_together(alike, progress=False)
    assert sorted(counted) == [4, 4, 8, 8]


def test_runs_that_cannot_be_read_so_are_run_as_ever_beside_others(decoder):
    configs = [
        small(rounds=2), agreeing(decoder), small(rounds=2, engine="cohort", method="fedavg"),
        agreeing(decoder, engine="one_by_one"), agreeing(decoder, sampled=2),
    ]  # fmt: skip
    found = run_together(configs, progress=False)
    for i, (config, done) in enumerate(zip(configs, found, strict=True)):
        expected = fresh(config)
        close(done, expected)
        if i != 1:
            same(done, expected)  # to the bit, since nothing is shared


@pytest.mark.usefixtures("every_round_is_written")
def test_what_was_stopped_in_the_middle_goes_on_from_there(decoder, tmp_path, monkeypatch):
    configs = [agreeing(decoder, mixing=mixing, rounds=3) for mixing in (0.1, 0.5)] + [agreeing(decoder, rounds=1)]
    whole = run_together(configs, progress=False)
    save, saved = Store.save, []

    def stopping(self, t, *args):
        states = save(self, t, *args)
        saved.append((self.config.run_id, t))
        if len(saved) == 5:  # 3 after the first round, one of two after the second, and the next
            raise StoppedError
        return states

    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(Store, "save", stopping)
        run_together(configs, tmp_path, progress=False)
    assert [t for _, t in saved] == [1, 1, 1, 2, 2]
    rounds = computes(monkeypatch)
    found = run_together(configs, tmp_path, progress=False)
    assert rounds == [3, 3]
    for one, other in zip(found, whole, strict=True):
        same(one, other)


def test_rounds_between_those_that_are_written_are_computed_again(decoder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WRITTEN", 2)
    configs = [agreeing(decoder, mixing=mixing, rounds=5) for mixing in (0.1, 0.5)]
    whole = run_together(configs, progress=False)
    honest = module.train_runs

    def stopping(requests, t):
        if t == 4:
            raise StoppedError
        return honest(requests, t)

    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(module, "train_runs", stopping)
        run_together(configs, tmp_path, progress=False)
    rounds = computes(monkeypatch)
    for one, other in zip(run_together(configs, tmp_path, progress=False), whole, strict=True):
        same(one, other)
    assert rounds == [3, 3, 4, 4, 5, 5]


@pytest.mark.usefixtures("every_round_is_written")
def test_runs_that_are_not_equally_far_go_on_together(decoder, tmp_path, monkeypatch):
    configs = [agreeing(decoder, mixing=mixing, rounds=3) for mixing in (0.1, 0.5)]
    whole = run_together(configs, progress=False)
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        stop_after(patched, 2)
        run_together(configs[:1], tmp_path, progress=False)
    rounds = computes(monkeypatch)
    found = run_together(configs, tmp_path, progress=False)
    assert rounds == [1, 2, 3, 3]
    for one, other in zip(found, whole, strict=True):
        close(one, other)


def test_finished_runs_are_returned_and_a_single_run_goes_on_with_one_of_a_study(decoder, tmp_path, monkeypatch):
    configs = [agreeing(decoder, mixing=mixing) for mixing in (0.1, 0.5)]
    whole = run_together(configs, tmp_path, progress=False)
    rounds = computes(monkeypatch)
    again = run_together([*configs, agreeing(decoder, rounds=0)], tmp_path, progress=False)
    assert not rounds
    for one, other in zip(again, whole, strict=False):
        same(one, other)
    same(run(configs[0], tmp_path / configs[0].run_id, progress=False), whole[0])
    assert not rounds


def test_a_config_that_is_there_twice_is_one_run(decoder, tmp_path, monkeypatch):
    one, other = agreeing(decoder), agreeing(decoder, mixing=0.5)
    rounds = computes(monkeypatch)
    found = run_together([one, other, one], tmp_path, progress=False)
    assert [done.config for done in found] == [one, other, one] and found[0] is found[2]
    assert rounds == [1, 1, 2, 2]
    assert run_together([], tmp_path, progress=False) == []


def test_more_runs_than_are_held_at_once(decoder, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2)
    configs = [agreeing(decoder, mixing=mixing) for mixing in (0.1, 0.2, 0.3)]
    for config, done in zip(configs, run_together(configs, progress=False), strict=True):
        close(done, fresh(config))


def test_a_folder_in_use_or_of_another_config_is_refused_and_no_run_begins(decoder, tmp_path, monkeypatch):
    configs = [agreeing(decoder, mixing=mixing) for mixing in (0.1, 0.5)]
    rounds, folder = computes(monkeypatch), tmp_path / configs[1].run_id
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(FedReFTError, match="is in use by another process"):
        run_together(configs, tmp_path, progress=False)
    assert not rounds
    run(configs[0].but(rounds=0), folder, progress=False)
    with pytest.raises(ConfigError, match=r"holds a run with another mixing .*choose another folder or delete"):
        run_together(configs, tmp_path, progress=False)
    assert not rounds
    assert run_together(configs[:1], tmp_path, progress=False)[0].manifest["round"] == 2  # no lock is left


@pytest.mark.usefixtures("every_round_is_written")
def test_a_run_with_too_few_updates_stops_all_and_each_goes_on_from_its_last_round(decoder, tmp_path):
    good, bad = agreeing(decoder), agreeing(decoder, drops=[[1, 2], [2, 2], [3, 2]])
    with pytest.raises(FedReFTError, match="round 2 has 1 admitted updates and needs 2"):
        run_together([bad, good], tmp_path, progress=False)
    kept = json.loads((tmp_path / good.run_id / "manifest.json").read_text())
    assert kept["round"] == 1
    close(run_together([good], tmp_path, progress=False)[0], fresh(good))


def test_federations_that_are_there_at_once_share_what_is_kept_in_any_order(decoder):
    configs = [agreeing(decoder, layers=layers, mixing=m) for m in (0.1, 0.2) for layers in ("2-3", [3])]
    federations = [assemble(config) for config in configs]
    kept = [federation.clients[0].train.last[0][0] for federation in federations]
    assert kept[0] is kept[2] and kept[1] is kept[3] and kept[0] is not kept[1]


def test_no_runs_train_nothing():
    assert train_runs([], 1) == []
