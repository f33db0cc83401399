"""Eight tasks of one's own, one a client, labels and free text together: read from files, trained and tested."""

import json

import pytest

from fedreft_lib import RunConfig, run
from fedreft_lib.federation import federated_round, start
from fedreft_lib.worlds import Options, Texts, open_world

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
