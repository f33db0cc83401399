"""A run's folder: what was computed comes back to the bit, and nothing that is torn, foreign or outdated is used."""

import contextlib
import json
import math
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch

from fedreft_lib import environment, load_run, load_runs, results_of
from fedreft_lib.errors import ConfigError, ElsewhereWarning, FedReFTError
from fedreft_lib.runs import checkpoints, results, store
from fedreft_lib.runs.history import HISTORY, history_of
from tests.helpers.federations import StoppedError, computes, finish, same, small, stopped, thinned

# DESIGN.md, section 6.
CONTRACT = [
    "experiment", "benchmark", "task", "setup", "model", "method", "aggregation", "mixing", "intervention", "rank",
    "layers", "clients", "rounds", "seed", "round", "client", "split", "metric", "value", "trainable_params",
    "head_params", "uplink_bytes", "downlink_bytes", "seconds",
]  # fmt: skip


# ---- what is in a folder --------------------------------------------------------------------------------------------


def test_a_run_comes_back_as_it_was(tmp_path):
    config = small(mixing="adaptive", rounds=2, union_size=4)
    done = finish(config, tmp_path)
    back = load_run(tmp_path)
    same(back, done)
    assert back.config == config and back.spec == done.spec and back.folder == tmp_path
    assert back.states.dtype == torch.float32 and back.states.shape == (4, back.spec.size)
    assert back.mixing_matrices.shape == (2, 4, 4)
    assert back.history["seconds"].tolist() == done.history["seconds"].tolist()
    assert (back.history.dtypes == done.history.dtypes).all()
    assert (done.history.query("round > 0 and metric == 'loss' and split == 'train'")["seconds"] > 0).all()
    named = back.spec.named(back.states[0])
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == dict(back.spec.shapes)


def test_the_folder_has_what_the_contract_says_and_the_manifest_names_what_it_depends_on(kept, tmp_path):
    kept.copied(3, tmp_path)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    checkpoints = ["checkpoints/round_0002.safetensors", "checkpoints/round_0003.safetensors"]
    assert found == [".lock", *checkpoints, "config.json", "history.csv", "manifest.json"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["round"] == manifest["rounds"] == 3
    assert {
        "code", "commit", "backbone", "data", "dtype", "device", "threads", "deterministic", "python", "platform",
        "versions", "seed", "set_aside",
    } <= set(manifest)  # fmt: skip
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_run_without_a_folder_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = finish(small(rounds=1))
    assert done.folder is None and list(tmp_path.iterdir()) == []


def test_a_finished_run_is_returned_and_not_computed_again(kept, tmp_path, monkeypatch):
    kept.copied(3, tmp_path)
    rounds = computes(monkeypatch)
    monkeypatch.setattr("fedreft_lib.federation.rounds.assemble", None)  # nothing is loaded either
    same(finish(kept.config, tmp_path), kept.whole)
    assert rounds == []


def test_without_resume_everything_is_computed_again(kept, tmp_path, monkeypatch):
    kept.copied(3, tmp_path)
    rounds = computes(monkeypatch)
    same(finish(kept.config, tmp_path, resume=False), kept.whole)
    assert rounds == [1, 2, 3]


def test_only_the_rounds_that_are_missing_are_computed(kept, tmp_path, monkeypatch):
    kept.copied(1, tmp_path)
    rounds = computes(monkeypatch)
    finish(kept.config, tmp_path)
    assert rounds == [2, 3]


# ---- what is torn, foreign or outdated ------------------------------------------------------------------------------


def test_torn_temporary_files_do_no_harm(kept, tmp_path):
    kept.copied(1, tmp_path)
    names = ["manifest.json", "history.csv", "config.json", "checkpoints/round_0001.safetensors"]
    for name in [*names, "checkpoints/round_0002.safetensors"]:
        (tmp_path / f"{name}.tmp").write_bytes(b'{"round": 3, torn')
    assert load_run(tmp_path).manifest["round"] == 1
    same(finish(kept.config, tmp_path), kept.whole)


@pytest.mark.parametrize(("victim", "round"), [("checkpoint", 1), ("history.csv", 2), ("manifest.json", 2)])
def test_a_crash_within_a_save_loses_at_most_that_round(kept, tmp_path, monkeypatch, victim, round):
    config, whole = kept.config, kept.whole
    kept.copied(1, tmp_path)
    write = store.write_text

    def crash(path, *args):
        if victim in ("checkpoint", path.name):
            raise StoppedError
        write(path, *args)

    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(store, "write_text", crash)
        patched.setattr(checkpoints, "save_tensors", lambda tensors, path, notes: crash(path)) if round == 1 else None
        finish(config, tmp_path)
    back = load_run(tmp_path)
    assert back.manifest["round"] == back.history["round"].max() == len(back.mixing_matrices) == round
    same(finish(config, tmp_path), whole)


def test_whose_the_files_are_is_known_before_the_first_checkpoint(kept, tmp_path, monkeypatch):
    def seen(tensors, path, notes):
        assert json.loads((tmp_path / "config.json").read_text()) == json.loads(kept.config.model_dump_json())
        raise StoppedError

    monkeypatch.setattr(checkpoints, "save_tensors", seen)
    with pytest.raises(StoppedError):
        finish(kept.config, tmp_path)


@pytest.mark.parametrize("large", [False, True])
def test_a_run_that_starts_again_can_be_read_at_any_moment(tmp_path, monkeypatch, large):
    """large: rounds need the files of earlier rounds, so in between there may be none but the new one."""
    if large:
        monkeypatch.setattr(checkpoints, "IN_ONE_FILE", 0)
    config = thinned(rounds=5) if large else small(rounds=3)
    finish(config, tmp_path)
    save, unlink, found = checkpoints.save_tensors, Path.unlink, []

    def read():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if large else "error")
            found.append(load_run(tmp_path).manifest["round"])

    def saved(tensors, path, notes):
        read()
        save(tensors, path, notes)
        read()

    def unlinked(path):
        unlink(path)
        read()

    monkeypatch.setattr(checkpoints, "save_tensors", saved)
    monkeypatch.setattr(Path, "unlink", unlinked)
    finish(config, tmp_path, resume=False)
    again = found.index(0)
    assert found[:2] == [config.rounds] * 2 and found[-1] == config.rounds
    assert found[:again] == sorted(found[:again], reverse=True) and found[again:] == sorted(found[again:])


def test_only_runs_of_the_wanted_experiments_are_read(kept, tmp_path):
    kept.copied(3, tmp_path / "read")
    (tmp_path / "other/checkpoints").mkdir(parents=True)  # another notebook begins it just now
    (tmp_path / "other/config.json").write_text(kept.config.but(experiment="07_methods").model_dump_json())
    (tmp_path / "other/manifest.json").write_text("{}")
    assert [each.folder.name for each in load_runs(tmp_path, lambda experiment: experiment != "07_methods")] == ["read"]
    with pytest.raises(FedReFTError, match="no checkpoint"):
        load_runs(tmp_path)
    (tmp_path / "read/config.json").unlink()
    shutil.rmtree(tmp_path / "other")
    assert load_runs(tmp_path, lambda experiment: experiment == "07_methods") == []


def test_a_run_that_a_batch_moves_meanwhile_is_not_among_those_of_the_folder(kept, tmp_path, monkeypatch):
    folders = [kept.copied(3, tmp_path / name) for name in ("gone", "here")]
    read = results.read_run

    def moved(folder):
        shutil.rmtree(folders[0], ignore_errors=True)
        return read(folder)

    monkeypatch.setattr(results, "read_run", moved)
    assert [each.folder for each in load_runs(tmp_path)] == folders[1:]


@pytest.mark.parametrize("change", [{"mixing": 0.9}, {"seed": 1}, {"rounds": 4}, {"experiment": "x"}])
def test_a_run_of_another_config_in_the_folder_is_refused_and_left_alone(kept, tmp_path, change):
    kept.copied(3, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}  # .lock, too: it is there
    for resume in (True, False):
        with pytest.raises(ConfigError) as refused:
            finish(kept.config.but(**change), tmp_path, resume=resume)
        text = str(refused.value)
        assert next(iter(change)) in text and str(tmp_path) in text and "\n" not in text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("rounds", [1, 3], ids=["unfinished", "finished"])
def test_a_run_that_other_code_made_is_computed_anew(kept, tmp_path, monkeypatch, rounds):
    kept.copied(rounds, tmp_path)
    monkeypatch.setattr(environment, "code_fingerprint", lambda: "0123456789abcdef")
    computed = computes(monkeypatch)
    with pytest.warns(ElsewhereWarning, match=f"{rounds} rounds in .* other code: they are computed again"):
        same(finish(kept.config, tmp_path), kept.whole)
    assert computed == [1, 2, 3] and load_run(tmp_path).manifest["code"] == "0123456789abcdef"


@pytest.mark.parametrize(
    ("key", "after"),  # a finished run is returned without loading its backbone, so nothing is known of its weights
    [("backbone", 2), ("backbone", 3), ("weights", 2), ("data", 2), ("data", 3), ("dtype", 2)],
)
def test_a_run_on_another_backbone_or_other_data_is_computed_anew(kept, tmp_path, monkeypatch, key, after):
    kept.copied(after, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {key: "another"}))
    computed = computes(monkeypatch)
    with pytest.warns(ElsewhereWarning, match=f"{after} rounds in .* other {key}: they are computed again"):
        finish(kept.config, tmp_path)
    assert computed == [1, 2, 3]


@pytest.mark.parametrize(("key", "value"), [("threads", 64), ("versions", {"torch": "1.0"}), ("device", "cuda")])
def test_a_run_goes_on_elsewhere_with_a_warning_that_its_bits_may_differ(kept, tmp_path, monkeypatch, key, value):
    kept.copied(2, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    computed = computes(monkeypatch)
    with pytest.warns(ElsewhereWarning, match=f"made with {key} .*{value if key != 'versions' else '1.0'}"):
        finish(kept.config, tmp_path)
    assert computed == [3]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"code": "another"}, "other library code"), ({"versions": {"torch": "1.0"}}, "torch 1.0 "), ({}, "")],
    ids=["code", "torch", "nothing"],
)
def test_loading_says_where_a_run_was_made_if_not_here(kept, tmp_path, change, said):
    kept.copied(3, tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with contextlib.nullcontext() if not change else pytest.warns(ElsewhereWarning, match=said):
        load_run(tmp_path / "run")
    with contextlib.nullcontext() if not change else pytest.warns(ElsewhereWarning, match=said):
        load_runs(tmp_path)


def test_the_code_fingerprint_follows_what_computes_and_not_what_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    for room in ("core", "methods", "workbook", "flower"):
        (tmp_path / room).mkdir()
    found = []
    for name, text in [
        ("core/mixing.py", "a"), ("core/mixing.py", "b"), ("methods/new.py", ""), ("methods/new.py", "x"),
        ("workbook/figures.py", "1"), ("flower/host.py", "2"), ("__main__.py", "3"),
    ]:  # fmt: skip
        (tmp_path / name).write_text(text)
        found.append(environment.code_fingerprint.__wrapped__())
    assert len(set(found[:4])) == 4 and len(set(found[3:])) == 1


@pytest.mark.parametrize("after", [0, 1])
def test_a_run_that_was_started_again_can_be_stopped_and_resumed(kept, tmp_path, after):
    kept.copied(3, tmp_path)
    stopped(kept.config, tmp_path, after, resume=False)
    same(finish(kept.config, tmp_path), kept.whole)


def test_a_crash_while_a_run_is_started_again_leaves_no_half_history(kept, tmp_path, monkeypatch):
    config, whole = kept.config, kept.whole
    kept.copied(3, tmp_path)
    write = store.write_text

    def crash(path, text):
        if path.name == "manifest.json":
            raise StoppedError
        write(path, text)

    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(store, "write_text", crash)
        finish(config, tmp_path, resume=False)
    same(finish(config, tmp_path), whole)


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    with pytest.raises(FedReFTError, match="there is no run in"):
        load_run(tmp_path)


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_any_history_survives_the_csv_to_the_bit(tmp_path):
    done = finish(small(rounds=0), tmp_path)
    values = [0.1, 1 / 3, math.pi * 1e-300, 5e-324, 1.7976931348623157e308, -0.0, math.nan, math.inf, -math.inf, 7.0]
    more = [{"note": 'commas, "quotes" and\nlines'}, {"note": "NA"}, {"task": "null"}, {"seconds": 0.1 + 0.2}]
    rows = [
        {"round": 0, "client": "a", "split": "s", "metric": "m", "value": value, "uplink_bytes": 2**53 - 1, **extra}
        for value, extra in zip(values, [*more, *[{}] * 6], strict=True)
    ]
    own = store.Store(done.config, tmp_path)
    own.manifest = dict(done.manifest)
    own.save(0, done.clients, [], rows, {}, {})
    back, expected = load_run(tmp_path).history, history_of(rows)
    pd.testing.assert_frame_equal(back, expected, check_exact=True)
    bits = [[float(value).hex() for value in table["value"]] for table in (back, expected)]  # -0.0 too
    assert bits[0] == bits[1] and list(back.columns) == list(HISTORY)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"method": "fedreft", "aggregation": "geometric_median", "mixing": "fixed 0.3", "layers": "2-3"}),
        ({"mixing": "adaptive", "aggregation": "mean"}, {"aggregation": "mean", "mixing": "adaptive"}),
        ({"method": "fedavg", "layers": [1, 3]}, {"aggregation": "none", "mixing": "none", "layers": "1 3"}),
        ({"method": "local", "experiment": "ablation"}, {"mixing": "none", "experiment": "ablation"}),
    ],
    ids=["median", "adaptive", "fedavg", "local"],
)
def test_results_have_exactly_the_columns_of_the_contract(fields, expected):
    done = finish(small(**fields, rounds=1))
    table = done.results
    assert list(table.columns) == CONTRACT and len(table) == len(done.history)
    expected = expected | {"benchmark": "commonsense", "setup": "distinct", "model": "tiny-llama", "head_params": 0}
    expected |= {"rank": 2, "clients": 4, "rounds": 1, "seed": 0, "trainable_params": done.spec.size}
    for name, value in expected.items():
        assert set(table[name]) == {value}, name
    assert not table.drop(columns="value").isna().any().any()
    key = ["round", "client", "split", "metric"]
    assert not table.duplicated(key).any()  # one row per (run, round, client, metric)


def test_many_runs_become_one_table_in_the_order_of_their_names(tmp_path):
    configs = [small(rounds=0, seed=seed) for seed in (2, 0, 1)]
    for config in configs:
        finish(config, tmp_path / config.run_id)
    (tmp_path / "not a run").mkdir()
    found = load_runs(tmp_path)
    assert [each.config.run_id for each in found] == sorted(config.run_id for config in configs)
    table = results_of(found)
    assert list(table.columns) == CONTRACT and len(table) == 24 and set(table["seed"]) == {0, 1, 2}
    assert list(results_of([]).columns) == CONTRACT and load_runs(tmp_path / "empty") == []


def test_a_run_folder_can_be_moved(kept, tmp_path):
    kept.copied(3, tmp_path / "a").rename(tmp_path / "b")
    same(load_run(tmp_path / "b"), kept.whole)
    same(finish(kept.config, tmp_path / "b"), kept.whole)
