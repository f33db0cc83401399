"""Files in any of the usual layouts become the items that they mean, or are refused with file and row."""

import csv
import json

import pytest

from fedreft_lib.data.commonsense_sources import load_questions
from fedreft_lib.data.items import Exchange, Question
from fedreft_lib.data.own_files.local_files import INPUT_MARK, load_local
from fedreft_lib.errors import DataError


def _json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def _lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _table(path, rows, delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


# ---- eight mixed tasks, one a client ----------------------------------------------------------------------------


def _news(folder):  # labels as words, a table
    rows = [{"text": f'He said "go", {i}\ntimes.', "label_text": ("World", "Sports")[i % 2]} for i in range(10)]
    _table(folder / "news_train.csv", rows)
    _table(folder / "news_test.csv", rows[:3])
    return Question("news", "", 'He said "go", 1\ntimes.', ("Sports", "World"), 0)


def _entailment(folder):  # numbers, and a file of names
    rows = [{"premise": f"A man runs {i}.", "hypothesis": "He sits.", "label": i % 3} for i in range(6)]
    _lines(folder / "nli" / "train.jsonl", rows)
    _lines(folder / "nli" / "test.jsonl", rows)
    _json(folder / "nli" / "labels.json", ["yes", "maybe", "no"])
    return Question("nli", "", "Premise: A man runs 1.\nHypothesis: He sits.", ("yes", "maybe", "no"), 1)


def _science(folder):  # choices of each row, with letters
    choices = {"text": ["iron", "wood"], "label": ["A", "B"]}
    rows = [{"question": f"What burns, {i}?", "choices": choices, "answerKey": "B"} for i in range(3)]
    _json(folder / "science_train.json", rows)
    _json(folder / "science_test.json", rows)
    return Question("science", "", "What burns, 1?", ("iron", "wood"), 1)


def _paraphrase(folder):  # numbers without names, tab-separated
    rows = [{"sentence1": f"It rains {i}.", "sentence2": "Rain falls.", "label": i % 2} for i in range(10)]
    _table(folder / "same_train.tsv", rows, "\t")
    _table(folder / "same_test.tsv", rows, "\t")
    return Question("same", "", "Sentence1: It rains 1.\nSentence2: Rain falls.", ("0", "1"), 1)


def _ending(folder):  # FLAN's list in the text
    text = "Jo was cold. {}\n\nOPTIONS:\n- She lit a fire.\n- She ate ice."
    rows = [{"instruction": text.format(i), "output": "She ate ice.", "task": "story"} for i in range(3)]
    _json(folder / "story_train.json", rows)
    _lines(folder / "story_test.jsonl", rows)
    return Question("story", "", text.format(1), ("She lit a fire.", "She ate ice."), 1)


def _sentence(folder):  # free text
    rows = [{"concepts": ["dog", "ball"], "target": f"A dog has {i} balls."} for i in range(10)]
    _lines(folder / "sentence_train.jsonl", rows)
    _lines(folder / "sentence_test.jsonl", rows)
    return Exchange("sentence", "dog, ball", "A dog has 1 balls.")


def _mood(folder):  # an instruction with an input, and few answers
    rows = [{"instruction": "Sad?", "input": f"Tweet {i}", "output": ("yes", "no")[i % 2]} for i in range(10)]
    _json(folder / "mood_train.json", {str(i): row for i, row in enumerate(rows)})
    _json(folder / "mood_test.json", rows)
    return Question("mood", "", "Sad?\nTweet 1", ("no", "yes"), 0)


def _pronoun(folder):
    one = {"pronoun": "he", "candidates": ["Bo", "Al"], "label": 1}
    rows = [{"sentence": f"Bo met Al and he ran {i}.", **one} for i in range(2)]
    _json(folder / "pronoun_train.json", rows)
    _json(folder / "pronoun_test.json", rows)
    return Question("pronoun", "", "Sentence: Bo met Al and he ran 1.\nPronoun: he", ("Bo", "Al"), 1)


MIXED = (_news, _entailment, _science, _paraphrase, _ending, _sentence, _mood, _pronoun)


@pytest.mark.parametrize("write", MIXED, ids=lambda write: write.__name__[1:])
def test_a_task_in_any_usual_layout_becomes_questions_or_exchanges(tmp_path, write):
    second = write(tmp_path)
    train, test = (load_local(second.task, split, tmp_path) for split in ("train", "test"))
    assert train[1] == test[1] == second
    assert len({item.uid for item in train}) == (1 if second.task == "sentence" else len(train))
    assert load_local(second.task, "dev", tmp_path) == []


def test_a_development_set_is_read_where_there_is_one(tmp_path):
    _lines(tmp_path / "q_train.jsonl", [{"question": "one?", "answer": "1"}])
    _lines(tmp_path / "q_validation.jsonl", [{"question": "two?", "answer": "2"}])
    assert load_local("q", "dev", tmp_path) == [Exchange("q", "two?", "2")]


# ---- one form after another -------------------------------------------------------------------------------------

ONE_ROW = [
    ({"instruction": "Add.", "input": "1 1", "output": "2"}, Exchange("t", f"Add.{INPUT_MARK}1 1", "2")),
    ({"instruction": "Double.", "input": 0, "output": 0}, Exchange("t", f"Double.{INPUT_MARK}0", "0")),
    ({"instruction": "Add.", "input": "", "output": " 2\n"}, Exchange("t", "Add.", "2")),
    ({"prompt": "Hi", "response": "Ho"}, Exchange("t", "Hi", "Ho")),
    ({"prompt": "Hi", "completion": "Ho"}, Exchange("t", "Hi", "Ho")),
    ({"question": "Hi?", "answer": 3.5}, Exchange("t", "Hi?", "3.5")),
    ({"question": "Hi?", "context": "It is day.", "answer": "Ho"}, Exchange("t", "It is day.\nHi?", "Ho")),
    ({"input": "Hi", "target": "Ho"}, Exchange("t", "Hi", "Ho")),
    ({"text": "Hi", "label_name": "greeting", "label": 0}, Exchange("t", "Hi", "greeting")),
    ({"text_a": "Hi", "text_b": "", "label": True}, Exchange("t", "Hi", "true")),
    (
        {"messages": [{"role": r, "content": r.upper()} for r in ("system", "user", "assistant", "user", "assistant")]},
        Exchange("t", "USER", "ASSISTANT"),
    ),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        Exchange("t", "Hi", "Ho"),
    ),
    ({"question": "Hi?", "options": ["2", "1"], "answer": "1"}, Question("t", "", "Hi?", ("2", "1"), 1)),
    ({"question": "Hi?", "options": ["x", "y"], "answer": 1}, Question("t", "", "Hi?", ("x", "y"), 1)),
    ({"question": "Hi?", "options": ["x", "y"], "answer": "B"}, Question("t", "", "Hi?", ("x", "y"), 1)),
    ({"question": "Hi?", "options": '["x", "y"]', "label": "0"}, Question("t", "", "Hi?", ("x", "y"), 0)),
    (
        {"passage": "P.", "question": "Hi?", "choices": ["x", "y"], "answer": "y"},
        Question("t", "P.", "Hi?", ("x", "y"), 1),
    ),
    ({"context": "P.", "question": "Hi?", "choices": ["x", "y"], "gold": 1}, Question("t", "P.", "Hi?", ("x", "y"), 1)),
]


@pytest.mark.parametrize("row, item", ONE_ROW)
def test_each_form_of_row_is_read_as_what_it_means(tmp_path, row, item):
    _json(tmp_path / "t_train.json", [row])
    assert load_local("t", "train", tmp_path) == [item]


def test_a_commonsense_task_may_come_as_requests_and_responses(tmp_path):
    text = "What burns?\n\nOPTIONS:\n- iron\n- wood"
    _json(tmp_path / "openbookqa_train.json", [{"instruction": text, "output": "wood"}])
    (item,) = load_local("openbookqa", "train", tmp_path)
    assert item == Question("openbookqa", "", text, ("iron", "wood"), 1)


# ---- few answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "different, each, expected",
    [(20, 5, Question), (21, 5, Exchange), (20, 4, Exchange), (2, 5, Question), (1, 50, Exchange)],
)
def test_answers_are_choices_if_at_most_20_share_5_rows_each_in_the_train_file(tmp_path, different, each, expected):
    rows = [{"text": f"row {i}", "label": f"l{i % different}"} for i in range(different * each)]
    _json(tmp_path / "t_train.json", rows)
    _json(tmp_path / "t_test.json", rows[:1])  # alone, it would be free text
    for split in ("train", "test"):
        assert {type(item) for item in load_local("t", split, tmp_path)} == {expected}


def test_a_test_answer_that_no_train_row_has_is_refused_by_row(tmp_path):
    rows = [{"text": f"row {i}", "label": str(3 + i % 2)} for i in range(10)]
    _json(tmp_path / "t_train.json", rows)
    _lines(tmp_path / "t_test.jsonl", [rows[0], {"text": "x", "label": 0}])  # 0 is no index here
    with pytest.raises(DataError, match="t_test.jsonl, line 2: the answer '0' is none of the choices '3', '4'"):
        load_local("t", "test", tmp_path)


def test_options_in_the_text_count_only_where_every_train_row_answers_with_one(tmp_path):
    rows = [{"prompt": f"{i}\nOPTIONS:\n- x\n- y", "response": "x"} for i in range(3)]
    _json(tmp_path / "t_test.json", rows[:1])
    for last, expected in (("y", Question), ("Both are good.", Exchange)):
        _json(tmp_path / "t_train.json", [*rows, rows[0] | {"response": last}])
        for split in ("train", "test"):
            assert {type(item) for item in load_local("t", split, tmp_path)} == {expected}


def test_options_in_the_text_are_found_behind_windows_line_ends(tmp_path):
    rows = [{"prompt": f"{i}\r\nOPTIONS:\r\n- x\r\n- y", "response": "xy"[i % 2]} for i in range(3)]
    _json(tmp_path / "t_train.json", rows)
    assert [item.choices for item in load_local("t", "train", tmp_path)] == 3 * [("x", "y")]


def test_a_table_with_tabs_may_quote_its_cells_or_not(tmp_path):
    (tmp_path / "t_train.tsv").write_text('text\tlabel\r\n"a\tb ""c"""\tx\r\n', encoding="utf-8")
    assert load_local("t", "train", tmp_path) == [Exchange("t", 'a\tb "c"', "x")]
    (tmp_path / "t_train.tsv").write_text('text\tlabel\n"a" b\tx\n"c\ty\n', encoding="utf-8")
    assert load_local("t", "train", tmp_path) == [Exchange("t", '"a" b', "x"), Exchange("t", '"c', "y")]


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("t_train.csv", "text,label\na,b\nc", "line 3: there are 1 cells, expected 2 as in the header"),
        ("t_train.tsv", "text\tlabel\na\tb\tc", "line 2: there are 3 cells, expected 2"),
        ("t_train.csv", "text,label\n", "holds no questions"),
        ("t_train.json", '[{"title": "a"}]', "row 1: no column asks: there must be one of instruction, .* got title"),
        ("t_train.json", '[{"text": "a"}]', "row 1: no column answers: there must be one of output, .* got text"),
        ("t_train.json", '[{"text": "a", "label": null}]', "row 1: the column label must hold text, got None"),
        ("t_train.json", '{"a": {"text": " ", "label": 1}}', "row a: the column text must hold text, got ' '"),
        ("t_train.json", '[{"messages": [{"role": "user", "content": "a"}]}]', "row 1: a chat must be a list of turns"),
        (
            "t_train.json",
            '[{"text": "a", "options": ["x", "y"], "answer": "C"}]',
            "row 1: the answer 'C' is none of the choices 'x', 'y'",
        ),
        ("t_train.json", '[{"text": "a", "options": "x or y", "answer": "x"}]', "row 1: options must be a list"),
        ("t_train.json", '[{"text": "a", "options": [], "answer": "x"}]', "row 1: options must be a list"),
        (
            "t_train.json",
            '[{"text": "a\\nOPTIONS:\\n- x", "label": "x"}]',
            "row 1: a question needs at least 2 choices",
        ),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_row(tmp_path, name, content, said):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said) as caught:
        load_local("t", "train", tmp_path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_label_names_must_be_a_list_of_texts(tmp_path):
    _json(tmp_path / "t_train.json", [{"text": "a", "label": 0}])
    _json(tmp_path / "t_labels.json", [0, 1])
    with pytest.raises(DataError, match="t_labels.json: this must be a JSON list of at least two label names"):
        load_local("t", "train", tmp_path)


def test_a_test_file_alone_asks_for_its_train_file(tmp_path):
    _json(tmp_path / "t_test.json", [{"text": "a", "label": "b"}])
    with pytest.raises(DataError, match="There is no train file of t in .*t_train.json or .* or t/train.tsv"):
        load_local("t", "test", tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Which?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "A"}, "columns A, B, C, D look"),
        ({"premise": "It rained.", "choice1": "wet", "choice2": "dry", "label": 0}, "columns choice1, choice2 look"),
        ({"context": "c", "question": "q?", "answerA": "x", "answerB": "y", "label": "1"}, "columns answerA, answerB"),
        ({"article": "long", "question": "q?", "options": ["x", "y"], "answer": "A"}, "column article is not read"),
        ({"question": "q?", "sentence": "s", "label": "yes"}, "column sentence is not read"),
        ({"text": "t", "label": " -1 "}, "stands for no label"),
        ({"text": "t", "label_text": "-1.0"}, "stands for no label"),
    ],
)
def test_columns_that_would_be_left_unread_and_missing_labels_are_refused(tmp_path, row, said):
    (tmp_path / "own_train.json").write_text(json.dumps([row] * 20), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        load_local("own", "train", tmp_path)


def test_a_dev_file_is_read_for_every_benchmark(tmp_path):
    rows = [{"question": f"{n}?", "choices": ["x", "y"], "gold": 0} for n in range(3)]
    (tmp_path / "own_validation.json").write_text(json.dumps(rows), encoding="utf-8")
    assert len(load_questions("own", "dev", source="local", data_dir=tmp_path)) == 3
