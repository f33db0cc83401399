"""Eight tasks of one's own, one a client, labels and free text together: read from files, trained and tested."""

import json
import shutil
from collections import Counter

import pytest

from fedreft_lib import RunConfig, run
from fedreft_lib.encoded import Options, Texts
from fedreft_lib.errors import DataError
from fedreft_lib.federation import federated_round, start
from fedreft_lib.partition import ClientData
from fedreft_lib.worlds import open_world, partition_of

LABELLED = {
    "news": lambda i: {"text": f"Report {i} of the match.", "label_text": ("sports", "science", "world")[i % 3]},
    "inference": lambda i: {
        "premise": f"Cat {i} sleeps.", "hypothesis": f"Pet {i} rests.", "label_text": ("yes", "no")[i % 2],
    },
    "quiz": lambda i: {"question": f"Which is {i}?", "choices": [str(i), str(i + 1), "none"], "gold": 0},
    "paraphrase": lambda i: {"sentence1": f"He ate {i}.", "sentence2": f"{i} he ate.", "output": ("yes", "no")[i % 2]},
    "mood": lambda i: {"instruction": "How does it sound?", "input": f"Day {i}!", "output": ("good", "bad")[i % 2]},
    "pronoun": lambda i: {"sentence": f"Ann {i} saw Eve.", "options": ["Ann", "Eve"], "answer": ("Ann", "Eve")[i % 2]},
}  # fmt: skip
FREE = {
    "story": lambda i: {"prompt": f"Go on: once, {i} birds", "response": f"flew over {i} hills and {i} lakes."},
    "words": lambda i: {"concepts": ["dog", f"ball{i}"], "target": f"The dog brings ball{i}."},
}
TASKS = (*LABELLED, *FREE)


@pytest.fixture
def folder(tmp_path):
    for name, row in {**LABELLED, **FREE}.items():
        for split, numbers in (("train", range(40)), ("test", range(40, 56))):
            (tmp_path / f"{name}_{split}.json").write_text(json.dumps([row(i) for i in numbers]), encoding="utf-8")
    return tmp_path


def own(folder, **changes) -> RunConfig:
    fields = dict(
        backbone="tiny-llama", benchmark="instruction", source="local", data_dir=str(folder), tasks=TASKS, clients=8,
        rank=2, layers="2-3", train_size=16, held_out_size=4, test_size=6, batch_size=8, rounds=1, max_new_tokens=4,
    )  # fmt: skip
    return RunConfig(**{**fields, **changes})


def test_each_client_is_tested_as_its_task_is_answered(folder):
    done = run(own(folder, union_size=16), progress=False)
    last = done.history[(done.history["round"] == 1) & (done.history["split"] == "test")]
    scored = last.groupby("task")["metric"].agg(set)
    assert {task: metrics for task, metrics in scored.items() if "accuracy" in metrics} == {
        t: {"accuracy"} for t in LABELLED
    }
    assert {task for task, metrics in scored.items() if metrics == {"rouge_l", "loss"}} == set(FREE)
    assert last["value"].between(0, 100).all() and len(done.accuracy()) == 8
    union = done.history[(done.history["split"] == "union") & (done.history["client"] == "client1-news")]
    assert set(union["metric"]) == {"accuracy", "rouge_l", "loss"}


def test_mixed_clients_have_a_part_for_each_kind_of_item(folder):
    config = own(folder, setup="mixed", clients=4, test_size=12)
    world = open_world(config)
    for client, dealt in zip(world.clients, world.questions, strict=True):
        assert [type(part) for part in client.test] == [Options, Texts]
        assert sum(map(len, client.test)) == len(dealt.test) == 12
    X = start(world, config)
    assert not federated_round(world, config, X, 1)[0].equal(X)


# ---- clients that bring their own -----------------------------------------------------------------------------------


def brought(folder, **changes) -> RunConfig:
    return own(folder, setup="own", clients=2, **changes)


@pytest.fixture
def homes(folder):
    """Client 1 has texts and quizzes, client 2 quizzes of its own."""
    for client, tasks in (("client1", ("news", "quiz")), ("client2", ("quiz",))):
        (folder / client).mkdir()
        for task in tasks:
            for split in ("train", "test"):
                rows = json.loads((folder / f"{task}_{split}.json").read_text(encoding="utf-8"))
                for row in rows if client == "client2" else ():
                    row["question"] = f"Again: {row['question']}"
                (folder / client / f"{task}_{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_clients_that_bring_their_own_have_that_alone_and_in_its_shares(homes):
    one, two = partition_of(brought(homes))
    assert (one.name, two.name) == ("client1", "client2-quiz")
    assert Counter(item.task for item in one.train) == {"news": 8, "quiz": 8}
    assert {item.task for item in two.train + two.held_out + two.test} == {"quiz"}
    for split, size in (("train", 16), ("held_out", 4), ("test", 6)):
        assert len(getattr(one, split)) == len(getattr(two, split)) == size
    assert partition_of(brought(homes), only=1) == [ClientData("client1", (), (), ()), two]
    assert partition_of(brought(homes, seed=1))[0] != one


def test_a_question_that_two_clients_bring_is_refused_where_both_are_seen(homes):
    for split in ("train", "test"):
        (homes / "client2" / f"quiz_{split}.json").write_bytes((homes / "client1" / f"quiz_{split}.json").read_bytes())
    with pytest.raises(DataError, match="of quiz is in the .* set of client1 and again in the .* set of client2-quiz"):
        partition_of(brought(homes))
    assert partition_of(brought(homes), only=1)[1].train


def test_a_client_without_files_is_named(homes):
    shutil.rmtree(homes / "client2")
    with pytest.raises(DataError, match="There is no train file of news or .* in .*client2"):
        partition_of(brought(homes))
    (homes / "client1" / "quiz_test.json").unlink()
    with pytest.raises(DataError, match="There is no test file of quiz in .*client1"):
        partition_of(brought(homes))


# ---- clients whose labels differ ------------------------------------------------------------------------------------


def moods(folder, *labels, **changes) -> RunConfig:
    """One client for each list of labels, which are those of its files."""
    for k, own_labels in enumerate(labels, 1):
        (folder / f"client{k}").mkdir(exist_ok=True)
        for split, numbers in (("train", range(30)), ("test", range(30, 50))):
            rows = [{"text_a": f"Day {k}.{i}", "label": own_labels[i % len(own_labels)]} for i in numbers]
            (folder / f"client{k}" / f"mood_{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    fields = dict(
        backbone="tiny-roberta", benchmark="glue", source="local", data_dir=str(folder), setup="own", tasks=("mood",),
        clients=len(labels), layers="2-3", rank=2, positions="f2", train_size=8, held_out_size=4, test_size=6,
        batch_size=4, rounds=1, max_length=32,
    )  # fmt: skip
    return RunConfig(**{**fields, **changes})


@pytest.mark.parametrize("labels", [(["glad", "sad"], ["mad", "sad"]), ([0, 1], [1, 2]), ([0, 1], [0.5, 1.5])])
def test_one_head_is_not_taught_two_numberings_of_classes(tmp_path, labels):
    config = moods(tmp_path, *labels)
    with pytest.raises(DataError, match="labels of mood are .* with client1-mood and .* with client2-mood: give"):
        run(config, progress=False)
    assert len(run(config.but(head="private"), progress=False).history)
    assert len(run(config.but(method="local"), progress=False).history)


def test_a_file_of_label_names_gives_clients_one_numbering(tmp_path):
    config = moods(tmp_path, ["glad", "sad"], ["mad", "sad"])
    for k in (1, 2):
        (tmp_path / f"client{k}" / "mood_labels.json").write_text(json.dumps(["glad", "mad", "sad"]))
    one, two = partition_of(config)
    assert {item.label for item in one.train} == {0, 2} and {item.label for item in two.train} == {1, 2}
    assert len(run(config, progress=False).history)
