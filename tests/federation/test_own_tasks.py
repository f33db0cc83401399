"""Eight tasks of one's own, one a client, labels and free text together: read from files, trained and tested."""

import json
import shutil
from collections import Counter

import pytest
import torch

from fedreft_lib import RunConfig, run
from fedreft_lib.data.partition import ClientData
from fedreft_lib.errors import DataError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.dealing import partition_of
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import participants
from fedreft_lib.model.encoding import ChoiceSet, TextSet
from tests.helpers.federations import StoppedError, same, stop_after

LABELLED = {
    "news": lambda i: {"text": f"Report {i} of the match.", "label_text": ("sports", "science", "federation")[i % 3]},
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
        t: {"accuracy", "calibrated_nll"} for t in LABELLED
    }
    assert {task for task, metrics in scored.items() if metrics == {"rouge_l", "loss"}} == set(FREE)
    assert last["value"].between(0, 100).all() and len(done.accuracy()) == 8
    union = done.history[(done.history["split"] == "union") & (done.history["client"] == "client1-news")]
    assert set(union["metric"]) == {"accuracy", "calibrated_nll", "rouge_l", "loss"}


def test_mixed_clients_have_a_part_for_each_kind_of_item(folder):
    config = own(folder, setup="mixed", clients=4, test_size=12)
    federation = assemble(config)
    for client, dealt in zip(federation.clients, federation.questions, strict=True):
        assert [type(part) for part in client.test] == [ChoiceSet, TextSet]
        assert sum(map(len, client.test)) == len(dealt.test) == 12
    X = start(federation, config)
    assert not federated_round(federation, config, X, 1)[0].equal(X)


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


# ---- clients that bring more and less -------------------------------------------------------------------------------


def numbered(folder, train, test=(10, 10, 10), tasks=("sums",)) -> RunConfig:
    """So many rows a client and task; all are another's."""
    for k, (n, m) in enumerate(zip(train, test, strict=True), 1):
        (folder / f"client{k}").mkdir(parents=True)
        for task in tasks:
            for split, count in (("train", n), ("test", m)):
                rows = [
                    {"question": f"{task} {split} {k}.{i}?", "choices": ["yes", "no"], "gold": i % 2}
                    for i in range(count)
                ]
                (folder / f"client{k}" / f"{task}_{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return RunConfig(
        backbone="tiny-llama", source="local", data_dir=str(folder), setup="own", tasks=list(tasks), clients=len(train),
        layers="2-3", rank=2, train_size=200, held_out_size=20, test_size=8, rounds=1, lr=0.01,
    )  # fmt: skip


def test_sizes_are_upper_bounds_and_of_too_few_a_share_is_held_out(tmp_path):
    config = numbered(tmp_path, (300, 200, 20, 3), (9, 8, 7, 1))
    sizes = [tuple(map(len, (c.train, c.held_out, c.test))) for c in partition_of(config)]
    # 200 of 300 and 20 more; else 20 / 220 is held out: 18 of 200, 1 of 20, and 1 of 3, which is the least
    assert sizes == [(200, 20, 8), (182, 18, 8), (19, 1, 7), (2, 1, 1)]
    for client in partition_of(config):
        items = client.train + client.held_out
        assert len({item.uid for item in items}) == len(items)


def test_steps_and_weights_follow_from_what_each_client_has(tmp_path):
    config = numbered(tmp_path, (200, 20, 3)).but(method="fedavg")
    federation = assemble(config)
    assert [each.steps for each in participants(federation, config)] == [
        23,
        3,
        1,
    ]  # of 8 questions, the last may be short
    averaged, alone = run(config, progress=False), run(config.but(method="local"), progress=False)
    p = torch.tensor([182, 19, 2], dtype=torch.float64) / 203
    assert averaged.history[averaged.history["metric"] == "admitted"]["value"].tolist() == [1.0] * 3
    torch.testing.assert_close(averaged.mixing_matrices[0].double(), p.expand(3, 3), atol=1e-7, rtol=0)
    parts = [averaged.spec.named(row)["W"].double() for row in alone.states]
    mean = sum(share * part for share, part in zip(p, parts, strict=True))
    for row in averaged.states:
        torch.testing.assert_close(averaged.spec.named(row)["W"].double(), mean, atol=1e-6, rtol=0)
    assert not torch.allclose(mean, sum(parts) / 3, atol=1e-4)  # the weights matter


@pytest.mark.parametrize("method", ("fedreft", "fedsb", "feddpa"))  # one by one, a start of all's data, and phases
def test_uneven_clients_train_under_every_kind_of_method_and_go_on_where_they_were(tmp_path, monkeypatch, method):
    config = numbered(tmp_path / "data", (40, 9, 2)).but(method=method, rounds=2, mixing="adaptive", batch_size=4)
    lora = {"intervention": "lora", "rank": 3} if method == "fedsb" else {}
    config = config.but(**lora)
    whole = run(config, progress=False)
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        stop_after(patched, 1)
        run(config, tmp_path / "run", progress=False)
    assemble(config).memo.clear()
    same(run(config, tmp_path / "run", progress=False), whole)
    set_aside = whole.history[(whole.history["metric"] == "admitted") & (whole.history["value"] == 0)]
    assert set_aside.empty


def test_one_of_several_tasks_may_lack_questions_and_the_others_give_them(tmp_path):
    config = numbered(tmp_path, (30, 30), (2, 2), ("sums", "times")).but(train_size=20, held_out_size=4)
    rows = [{"question": f"more {i}?", "choices": ["yes", "no"], "gold": 0} for i in range(20)]
    (tmp_path / "client1" / "times_test.json").write_text(json.dumps(rows), encoding="utf-8")
    client = partition_of(config)[0]
    assert Counter(item.task for item in client.train) == {"sums": 10, "times": 10}
    assert Counter(item.task for item in client.test) == {"sums": 2, "times": 6}


@pytest.mark.parametrize(("rows", "left"), [(1, 1), (9, 0)], ids=["one row", "all in the test"])
def test_a_client_that_cannot_be_trained_or_tested_is_named_with_its_folder(tmp_path, rows, left):
    config = numbered(tmp_path, (30, rows), (9, 9))
    if not left:
        source, target = (tmp_path / "client2" / f"sums_{split}.json" for split in ("test", "train"))
        target.write_bytes(source.read_bytes())
    said = f"client2 needs at least two training questions.* {tmp_path / 'client2'} has {left} and 9"
    with pytest.raises(DataError, match=said):
        partition_of(config)


@pytest.mark.parametrize("labels", [(["good", "bad", "so"], ["good", "bad"]), (["good", "bad"], ["good"])])
def test_one_task_is_not_answered_by_other_labels_with_another_client(tmp_path, labels):
    for k, own_labels in enumerate(labels, 1):
        (tmp_path / f"client{k}").mkdir()
        for split, numbers in (("train", range(30)), ("test", range(30, 40))):
            rows = [{"text": f"Day {k}.{i}", "label": own_labels[i % len(own_labels)]} for i in numbers]
            (tmp_path / f"client{k}" / f"mood_{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    config = RunConfig(
        backbone="tiny-llama", source="local", data_dir=str(tmp_path), setup="own", tasks=["mood"], clients=2,
        layers="2-3", rank=2, train_size=8, held_out_size=4, test_size=6, rounds=1,
    )  # fmt: skip
    with pytest.raises(DataError, match="labels of mood are .* with client1-mood and .* with client2-mood: give"):
        run(config, progress=False)
    for k in (1, 2):
        (tmp_path / f"client{k}" / "mood_labels.json").write_text(json.dumps(["bad", "good", "so"]))
    assert len(run(config, progress=False).history)
