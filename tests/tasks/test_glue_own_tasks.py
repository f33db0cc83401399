"""A classification task of one's own is read like GLUE's, and its classes come from its own labels."""

import json

import pytest

from fedreft_lib.errors import DataError
from fedreft_lib.tasks.glue import load


def _moods(folder, split, *labels, **more):
    rows = [{"text_a": f"{split} text {i}", "label": label, **more} for i, label in enumerate(labels)]
    (folder / "moods").mkdir(exist_ok=True)
    (folder / "moods" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _load(folder, split="train"):
    return load("moods", split, source="local", data_dir=folder, seed=0)


@pytest.mark.parametrize(
    "labels, classes, expected",
    [
        (["sad", "glad", "mad", "sad"], 3, [2, 0, 1, 2]),
        ([1, 0, 3, 10], 4, [1, 0, 2, 3]),
        ([True, False], 2, [1, 0]),
        ([0.5, 2, 1.25], 0, [0.5, 2.0, 1.25]),
    ],
    ids=["names", "numbers", "true and false", "scores"],
)
def test_the_classes_of_your_own_task_are_the_labels_of_its_train_file(tmp_path, labels, classes, expected):
    _moods(tmp_path, "train", *labels)
    _moods(tmp_path, "dev", labels[0], labels[1])
    assert [item.label for item in _load(tmp_path)] == expected
    held_out = _load(tmp_path, "dev") + _load(tmp_path, "test")
    assert {item.classes for item in _load(tmp_path) + held_out} == {classes}
    assert sorted(item.label for item in held_out) == sorted(expected[:2])


def test_your_own_test_file_is_the_test_set_and_the_dev_file_is_then_whole(tmp_path):
    _moods(tmp_path, "train", "sad", "glad")
    _moods(tmp_path, "test", "glad", "glad", "sad", text_b="and so on")
    assert _load(tmp_path, "dev") == []
    _moods(tmp_path, "validation", "sad", "glad", text_b=None)
    assert [item.text_b for item in _load(tmp_path, "dev")] == ["", ""]
    assert [(i.label, i.text_b) for i in _load(tmp_path, "test")] == [(k, "and so on") for k in (0, 0, 1)]


@pytest.mark.parametrize(
    "train, dev, said",
    [
        (["sad", 1], [], "train.jsonl: some labels are names and some are numbers"),
        (["sad", "sad"], [], "train.jsonl: a classification needs at least 2 classes, and all labels are 'sad'"),
        (["sad", None], [], "train.jsonl, line 2: the label must be a name or a number, got None"),
        (["sad", "glad"], ["glad", "mad"], "dev.jsonl, line 2: the label must be one of glad, sad, got 'mad'"),
    ],
)
def test_labels_that_make_no_classes_are_refused(tmp_path, train, dev, said):
    _moods(tmp_path, "train", *train)
    _moods(tmp_path, "dev", *dev)
    with pytest.raises(DataError, match=said):
        _load(tmp_path, "dev" if dev else "train")
