"""A classification task of one's own is read like GLUE's, and its classes come from its own labels."""

import json

import pytest

from fedreft_lib.data.glue import load
from fedreft_lib.errors import DataError


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
        ([0.5, -1, 1], 0, [0.5, -1.0, 1.0]),
        (["1", "10", "0", "2"], 4, [1, 3, 0, 2]),
        (["1", "10", "b"], 3, [0, 1, 2]),
        (["sad", " sad ", "glad"], 2, [1, 1, 0]),
        (["NA", "None", "nan"], 3, [0, 1, 2]),
    ],
    ids=[
        "names",
        "numbers",
        "true and false",
        "scores",
        "a score of -1",
        "texts of digits",
        "names, some of digits",
        "names with blanks",
        "names that elsewhere mean nothing",
    ],
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
        (
            ["sad", "glad", ""],
            [],
            "train.jsonl, line 3: the label must be a name or a number, got '', which stands for no",
        ),
        (
            [0, 1, -1, 0],
            [],
            "train.jsonl: some labels are -1, which stands for no label; .* the name of a class, choose another",
        ),
        (["0", "1", "-1"], [], "train.jsonl: some labels are '-1', which stands for no label; leave out the rows"),
        (
            [0, 1],
            [0, -1, -1],
            "dev.jsonl, line 2: the label must be one of 0, 1, got -1, which stands for no label; leave",
        ),
        (
            ["sad", "glad"],
            ["", ""],
            "dev.jsonl, line 1: the label must be one of glad, sad, got '', which stands for no",
        ),
        (
            ["sad", "glad"],
            [None],
            "dev.jsonl, line 1: the label must be one of glad, sad, got None, which stands for no",
        ),
        (
            [0.5, 1.5],
            [-1, -1],
            "dev.jsonl: all labels are -1, which stands for no label; leave out the rows without one",
        ),
        ([0.5, 1.5], [True], "dev.jsonl, line 1: the label must be a number, got True"),
        ([0.5, 1.5], ["1_0"], "dev.jsonl, line 1: the label must be a number, got '1_0'"),
        (
            [0.0, 1.0, 0.0, 1.0],
            [],
            "train.jsonl: the labels 0.0, 1.0 may be classes or scores; write classes without a",
        ),
        (["0.5", "1", "2.25"], [], "train.jsonl: the labels are scores in quotation marks; write them without"),
    ],
)
def test_labels_that_make_no_classes_are_refused(tmp_path, train, dev, said):
    _moods(tmp_path, "train", *train)
    _moods(tmp_path, "dev", *dev)
    with pytest.raises(DataError, match=said):
        _load(tmp_path, "dev" if dev else "train")


def test_scores_that_are_whole_numbers_have_a_column_of_their_own(tmp_path):
    for split in ("train", "dev"):
        rows = [{"text_a": f"{split} {i}", "text_b": "and so on", "score": float(i % 2)} for i in range(6)]
        (tmp_path / f"moods_{split}.json").write_text(json.dumps(rows))
    assert [(item.label, item.classes) for item in _load(tmp_path)] == 3 * [(0.0, 0), (1.0, 0)]
    assert {item.classes for item in _load(tmp_path, "test")} == {0}


def test_a_file_of_names_says_the_classes_and_their_order(tmp_path):
    (tmp_path / "moods_labels.json").write_text(json.dumps(["sad", "mad", "glad"]))
    _moods(tmp_path, "train", "sad", "glad", 1, "0")
    _moods(tmp_path, "test", "mad")  # which no train row is
    assert [(item.label, item.classes) for item in _load(tmp_path)] == [(0, 3), (2, 3), (1, 3), (0, 3)]
    assert [item.label for item in _load(tmp_path, "test")] == [1]
    assert _load(tmp_path)[0].names == ("sad", "mad", "glad")
    _moods(tmp_path, "test", "bad", -1)
    with pytest.raises(DataError, match="test.jsonl, line 1: the label must be one of 0, sad, 1, .*, got 'bad'"):
        _load(tmp_path, "test")
    (tmp_path / "moods_labels.json").write_text(json.dumps(["1", "2", "3"]))
    with pytest.raises(DataError, match="the label name '1' may be taken for a place in the list; rename it"):
        _load(tmp_path, "test")
