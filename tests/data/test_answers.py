"""What an answer means among its choices: one of them, by its form and what else the file says, or it is refused."""

import json
import random

import pytest

from fedreft_lib.data.items import Question
from fedreft_lib.data.own_files.answers import in_order, why_missing
from fedreft_lib.data.own_files.local_files import load_local
from fedreft_lib.errors import DataError

FOUR, WORDS = ["1", "2", "3", "4"], ["w", "x", "y", "z"]


def _load(folder, rows, split="train", ending=".json", names=None):
    """The right choice of each row (choices, answer) of a file of that split; other splits' files stay."""
    named = [
        {"question": f"{split} {i}?", "choices": row[0], "answer": row[1]} if names is None else
        {"question": f"{split} {i}?", "label": row}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    if ending == ".json":
        (folder / f"t_{split}.json").write_text(json.dumps(named))
    else:  # a table has no types
        lines = [[row["question"], json.dumps(row["choices"]), str(row["answer"])] for row in named]
        cells = [",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
        (folder / f"t_{split}.csv").write_text("\n".join(["question,choices,answer", *cells]))
    if names is not None:
        (folder / "t_labels.json").write_text(json.dumps(names))
    return [item.choices[item.gold] for item in load_local("t", split, folder)]


# rows of (choices, answer), and what they mean: the right choices, or why they are refused
SAID = {
    "a number is an index": ([(FOUR, 1)], ["2"]),
    "a number is an index beside any choices": ([(FOUR, 1), (WORDS, 0), (["0", "1"], 1)], ["2", "w", "1"]),
    "JSON tells no 1.0 from 1": ([(WORDS, 1.0)], ["x"]),
    "numbers that are no index are texts": (2 * [(["3", "9", "15", "18"], 3), (["3", "9", "15"], 15)], 2 * ["3", "15"]),
    "a text is a text": ([(FOUR, "1"), (FOUR, "4")], ["1", "4"]),
    "digits are an index where no text can be meant": ([(WORDS, "1")], ["x"]),
    "digits that agree in both ways": ([(["0", "1"], "1")], ["1"]),
    "another row says that digits are an index": ([(FOUR, "1"), (WORDS, "0")], ["2", "w"]),
    "another row says that digits are texts": ([(FOUR, "1"), (WORDS, "y")], ["1", "y"]),
    "digits that may be both": ([(FOUR, "1")], "row 1: the answer '1' may be the text of '1' or the index of '2'"),
    "both, though others are letters": ([(FOUR, "1"), (WORDS, "B")], "row 1: the answer '1' may be the text of '1' or"),
    "letters": ([(WORDS, "B"), (["A", "C", "B"], "B")], ["x", "C"]),
    "letters that are texts": ([(["A", "C", "B"], "B"), (WORDS, "y")], ["B", "y"]),
    "letters that may be both": ([(["A", "C", "B"], "B")], "the answer 'B' may be the text of 'B' or the letter of"),
    "choices that are numbers": ([([1, 2, 3, 4], 3)], "row 1: the answer 3 may be the text of '3' or the index of '4'"),
    "choices that are numbers, one out of range": ([([1, 2, 3, 4], 3), ([1, 2, 3, 4], 4)], ["3", "4"]),
    "choices that are numbers, one index 0": ([([1, 2, 3, 4], 0), ([1, 2, 3, 4], 2)], ["1", "3"]),
    "labels before texts": ([({"text": ["B", "A"], "label": ["A", "B"]}, "A")], ["B"]),
    "labels of two kinds in one file": (
        [({"text": ["u", "v"], "label": ["A", "B"]}, "B"), ({"text": ["2", "1"], "label": ["1", "2"]}, "2")],
        ["v", "1"],
    ),
    "texts beside labels": ([({"text": ["u", "v"], "label": ["A", "B"]}, "v")], ["v"]),
    "labels that are numbers": ([({"text": ["2", "4", "1"], "label": [1, 2, 3]}, 1)], ["2"]),
    "a label or an index": (
        [({"text": ["u", "v", "w"], "label": ["1", "2", "3"]}, 1)],
        "row 1: the answer 1 may be the label of 'u' or the index of 'v'",
    ),
    "a label, since another row is no index": (
        [({"text": ["u", "v", "w"], "label": ["1", "2", "3"]}, n) for n in (1, 3)],
        ["u", "w"],
    ),
    "true and false": ([([True, False], False), (["True", "False"], True), (["false", "true"], True)],
                       ["false", "True", "true"]),
    "true is no index": ([(["no", "yes"], True)], "row 1: the answer 'true' is none of the choices 'no', 'yes'"),
    "no fraction is an index": ([(WORDS, 1.5)], "row 1: the answer '1.5' is none of the choices"),
    "from 1, seen at its end": (
        [(WORDS, 1), (WORDS, 4)],
        r"row 2: the answer '4' is none of the choices .* counts from 0 \(if this file counts from 1, take one off\)",
    ),
    "from 1, as text": ([(WORDS, "4")], r"row 1: the answer '4' is none .* \(if this file counts from 1"),
    "from 1, and the last is a text": (
        [(WORDS, 1), (FOUR, 4)],
        "row 1: the answer 1 is the index of 'x', and other answers of this file that are a number cannot",
    ),
    "missing": ([(WORDS, 1), (WORDS, -1)], "row 2: the answer '-1' is none of .*, which stands for no label"),
    "null": ([(WORDS, None)], "row 1: the column answer must hold text, got None"),
    "empty": ([(WORDS, "")], "row 1: the column answer must hold text, got ''"),
    "a label too few": ([({"text": ["u", "v"], "label": ["A"]}, "A")], "row 1: choices must have one label for each"),
    "a label twice": ([({"text": ["u", "v"], "label": ["A", "A"]}, "A")], "row 1: choices must have one label for"),
}  # fmt: skip


@pytest.mark.parametrize("rows, meant", SAID.values(), ids=SAID)
def test_an_answer_means_one_choice_or_is_refused(tmp_path, rows, meant):
    if isinstance(meant, list):
        assert _load(tmp_path, rows) == meant
    else:
        with pytest.raises(DataError, match=meant):
            _load(tmp_path, rows)


@pytest.mark.parametrize(
    "rows, meant",
    [
        ([(WORDS, 1), (FOUR, 0)], ["x", "1"]),
        ([(FOUR, 1), (FOUR, 4)], ["1", "4"]),
        ([(FOUR, 1)], "line 2: the answer '1' may be the text of '1' or the index of '2'"),
        ([(FOUR, "y"), (WORDS, "y")], "line 2: the answer 'y' is none of the choices"),
    ],
)
def test_a_table_s_digits_are_what_its_other_rows_say(tmp_path, rows, meant):
    if isinstance(meant, list):
        assert _load(tmp_path, rows, ending=".csv") == meant
    else:
        with pytest.raises(DataError, match=meant):
            _load(tmp_path, rows, ending=".csv")


@pytest.mark.parametrize("split", ["test", "dev"])
def test_the_train_file_says_how_the_other_files_are_read(tmp_path, split):
    both = [(FOUR, "2")]
    _load(tmp_path, [(WORDS, "0")])
    assert _load(tmp_path, [(FOUR, "2"), (WORDS, "1")], split) == ["3", "x"]
    assert _load(tmp_path, both, split) == ["3"]
    _load(tmp_path, [(WORDS, "y")])
    assert _load(tmp_path, both, split) == ["2"]
    _load(tmp_path, [(WORDS, 1)])  # numbers, while the test's are texts of digits
    with pytest.raises(DataError, match=f"t_{split}.json, row 1: the answer '2' may be the text of"):
        _load(tmp_path, both, split)
    _load(tmp_path, [(WORDS, 1)])
    with pytest.raises(DataError, match=f"t_{split}.json, row 1: the answer 15 is the text of '15', and other answers"):
        _load(tmp_path, [(["12", "15"], 15)], split)


def test_a_test_file_by_itself_needs_no_train_file(tmp_path):
    assert _load(tmp_path, [(FOUR, 1)], "test") == ["2"]


@pytest.mark.parametrize(
    "labels, meant",
    [
        ([0, 2, 1], ["1", "3", "2"]),  # numbers: indexes into the names
        ([3, 1], ["3", "1"]),  # 3 is no index, so these are names
        (["0", "2"], ["1", "3"]),
        (["3", "1"], ["3", "1"]),
        (["1", "2"], "row 1: the answer '1' may be the text of '1' or the index of '2'"),
        ([0, -1], "row 2: the column label must hold text, got -1, which stands for no label; leave out the rows"),
        ([""], "row 1: the column label must hold text, got '', which stands for no label"),
        ([3, 0], "row 1: the answer 3 is the text of '3', and other answers of this file that are a number"),
    ],
)
def test_labels_beside_a_file_of_names_are_read_alike(tmp_path, labels, meant):
    if isinstance(meant, list):
        assert _load(tmp_path, labels, names=FOUR[:3]) == meant
    else:
        with pytest.raises(DataError, match=meant):
            _load(tmp_path, labels, names=FOUR[:3])


def test_of_many_answers_by_index_none_is_changed_by_choices_that_are_digits(tmp_path):
    """MMLU's layout: a number from 0 beside four texts, some of which are such numbers."""
    rng = random.Random(0)
    rows = [([str(n) for n in rng.sample(range(6), 4)], rng.randrange(4)) for _ in range(300)]
    assert _load(tmp_path, rows) == [choices[answer] for choices, answer in rows]
    assert sum(str(answer) in choices for choices, answer in rows) > 100


@pytest.mark.parametrize("gold, right", [("1", "y"), (1, "y"), ("x", None), (1.5, None), (True, None)])
def test_gold_is_an_index_also_in_a_table(tmp_path, gold, right):
    (tmp_path / "t_train.json").write_text(json.dumps([{"question": "q", "choices": '["x", "y"]', "gold": gold}]))
    if right:
        assert load_local("t", "train", tmp_path) == [Question("t", "", "q", ("x", "y"), 1)]
    else:
        with pytest.raises(DataError, match="row 1: the right answer must be a choice from 0 to 1, got"):
            load_local("t", "train", tmp_path)


def test_answers_that_are_choices_come_in_the_order_of_their_numbers(tmp_path):
    rows = [{"text": f"row {i}", "label": i % 11} for i in range(55)]
    (tmp_path / "t_train.json").write_text(json.dumps(rows))
    assert load_local("t", "train", tmp_path)[0].choices == tuple(map(str, range(11)))
    rows[7]["label"] = -1
    (tmp_path / "t_train.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="row 8: the column label must hold text, got -1, which stands for no label"):
        load_local("t", "train", tmp_path)


def test_an_answer_of_minus_one_is_an_answer(tmp_path):
    (tmp_path / "t_train.json").write_text(json.dumps([{"question": "2 - 3?", "answer": -1}]))
    assert load_local("t", "train", tmp_path)[0].response == "-1"


@pytest.mark.parametrize(
    "names, order",
    [
        (["10", "2", "0", "-1"], ["-1", "0", "2", "10"]),
        ([10, 2, 0], [0, 2, 10]),
        (["10", "2", "b"], ["10", "2", "b"]),
        (["07", "10", "2"], ["07", "10", "2"]),  # a code is no number
        (["9" * 5000, "10"], ["10", "9" * 5000]),
    ],
)
def test_whole_numbers_are_sorted_by_size(names, order):
    assert in_order(names) == order


def test_what_stands_for_no_label():
    assert all(map(why_missing, (None, "", " ", -1, -1.0, "-1")))
    assert not any(map(why_missing, (0, "0", False, 1, "NA", "None", "nan", "null", [], {}, 0.5)))
