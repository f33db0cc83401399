"""The scores of single items are those of the history one by one, and stay with the run to the bit."""

import json

import pandas as pd
import pytest
import torch

from fedreft_lib import load_run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.files import load_tensors, save_tensors
from fedreft_lib.model.encoding import AnswerSet
from fedreft_lib.runs import checkpoints
from fedreft_lib.runs.item_scores import KEYS, table_of, taken_out
from tests.helpers.federations import GLUE, finish, same, small, stopped

OF_ITEMS = ("accuracy", "calibrated_nll", "rouge_l", "style")
KINDS = {
    "choices": {"test_size": 7},
    "choices of several tasks": {"setup": "mixed", "union_size": 4},
    "too few to calibrate": {"test_size": 3},
    "generated choices": {"scoring": "generation", "prompt_format": "llm_adapters", "max_new_tokens": 3},
    "numbers": {"benchmark": "arithmetic", "tasks": ("addition", "division"), "max_new_tokens": 3},
    "texts": {"benchmark": "instruction", "tasks": ("telegram", "alpaca"), "setup": "mixed", "max_new_tokens": 3},
    "classes": {**GLUE, "layers": "all", "tasks": ("mnli", "cola"), "setup": "mixed", "test_size": 20},
}
METRICS = {  # the first is that of every item
    "choices": ["accuracy", "calibrated_nll"],
    "choices of several tasks": ["accuracy", "calibrated_nll"],
    "too few to calibrate": ["accuracy"],
    "generated choices": ["accuracy"],
    "numbers": ["accuracy"],
    "texts": ["rouge_l", "style"],
    "classes": ["accuracy", "calibrated_nll"],
}


@pytest.mark.parametrize("kind", METRICS)
def test_their_means_are_the_histories_values(kind):
    config = small(rounds=1, item_scores=True, **KINDS[kind])
    done = finish(config)
    table, history = done.item_scores, done.history[done.history["split"].isin(("test", "held_out"))]
    assert list(table) == [*KEYS, "item", "value"] and set(table["metric"]) == set(METRICS[kind])
    parts = [part for client in assemble(config).clients for part in (*client.test, client.held_out)]
    graded = [part for part in parts if type(part) is not AnswerSet]
    assert (table["metric"] == METRICS[kind][0]).sum() == 2 * sum(map(len, graded))  # in both rounds
    items = table.groupby(list(KEYS))
    assert all(part["item"].tolist() == [*range(len(part))] for _, part in items)
    noted = history[history["metric"].isin(OF_ITEMS)].set_index(list(KEYS))["value"]
    means = {key: value for key, value in items["value"].mean().items() if "cola" not in key or key in noted}
    assert means == pytest.approx(noted.to_dict(), rel=1e-6) and noted.index.is_unique


def test_a_regression_has_none_and_a_task_with_another_metric_has_its_accuracies():
    config = small(rounds=0, item_scores=True, **{**KINDS["classes"], "tasks": ("stsb",)})
    assert finish(config).item_scores.empty
    done = finish(config.but(tasks=("cola",)))
    table = done.item_scores.query("split == 'test'")
    assert set(done.history.query("split == 'test'")["metric"]) == {"matthews", "calibrated_nll"}
    assert (table["metric"] == "accuracy").sum() == 4 * config.test_size and set(table["value"]) > {0.0, 100.0}


@pytest.mark.parametrize("large", [False, True])
def test_they_survive_a_stop_to_the_bit_and_nothing_else_changes(tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr(checkpoints, "IN_ONE_FILE", 0)
    config = small(rounds=3, eval_every=1, item_scores=True)
    whole = finish(config)
    same(finish(config, tmp_path / "whole"), whole)
    stopped(config, tmp_path / "stopped", 2)
    same(finish(config, tmp_path / "stopped"), whole)
    back = load_run(tmp_path / "stopped")
    same(back, whole)
    pd.testing.assert_frame_equal(back.item_scores, whole.item_scores, check_exact=True)
    assert sorted(back.item_scores["round"].unique()) == [0, 1, 2, 3]
    plain = finish(config.but(item_scores=False))
    assert plain.item_scores.empty and list(plain.item_scores) == list(whole.item_scores)
    assert torch.equal(plain.states, whole.states)
    pd.testing.assert_frame_equal(*(done.history.drop(columns="seconds") for done in (plain, whole)), check_exact=True)


def test_a_checkpoint_from_before_there_were_any_is_read(kept, tmp_path):
    kept.copied(3, tmp_path)
    path = tmp_path / "checkpoints" / "round_0003.safetensors"
    tensors, notes = load_tensors(path)
    config = json.loads(notes["config"])
    del config["item_scores"]
    save_tensors(tensors, path, {**notes, "config": json.dumps(config)})
    back = load_run(tmp_path)
    same(back, kept.whole)
    assert back.item_scores.empty


def test_names_may_have_any_letters_and_a_task_that_is_tested_twice_keeps_all_items():
    row = {"round": 1, "client": 'é"/.\n', "task": "mixed", "split": "test", "metric": "accuracy"}
    plain, tensors = taken_out([{**row, "value": 50.0}, {**row, "value": [0.0, 100.0]}, {**row, "value": [100.0]}])
    assert plain == [{**row, "value": 50.0}] and [each.dtype for each in tensors.values()] == [torch.float32]
    expected = [{**row, "item": i, "value": value} for i, value in enumerate((0.0, 100.0, 100.0))]
    pd.testing.assert_frame_equal(table_of(tensors), pd.DataFrame(expected))
