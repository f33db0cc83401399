"""Exchanges from every source, and the frames that a model reads them in."""

import json
from collections import Counter
from importlib import util
from pathlib import Path

import pytest

from fedreft_lib.data import instruction
from fedreft_lib.data.grading.styles import STYLES
from fedreft_lib.data.items import Exchange
from fedreft_lib.data.own_files.local_files import INPUT_MARK
from fedreft_lib.errors import ConfigError, DataError

PLAIN = Exchange("alpaca", "Say {hi}.", "Hi.")
WITH_INPUT = Exchange("alpaca", f"Say it.{INPUT_MARK}hi", "Hi.")


# ---- packaged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", instruction.PACKAGED)
def test_each_style_has_44_exchanges_to_train_and_16_others_to_test(style):
    train, test = (instruction.load(style, split, source="packaged") for split in ("train", "test"))
    assert (len(train), len(test)) == (44, 16)
    assert not {e.uid for e in train} & {e.uid for e in test}
    assert {(e.task, e.kind) for e in train + test} == {(style, "text")}
    assert instruction.load(style, "test", source="packaged", seed=5) == test
    assert instruction.load(style, "dev", source="packaged") == []


# ---- hub --------------------------------------------------------------------------------------------------------


class _Rows(list):
    """What `datasets.Dataset` does here: a list that can be shuffled by a seed."""

    def shuffle(self, seed):
        assert seed == 42
        return _Rows(reversed(self))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The three repositories, in their own columns; gives the names asked for."""
    preferred = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]
    content = {
        "yahma/alpaca-cleaned": [
            {"instruction": "Say it.", "input": "hi", "output": "Hi."},
            {"instruction": "Say nothing.", "input": "", "output": ""},
            {"instruction": "Say ho.", "input": "", "output": "Ho."},
        ],
        "argilla/ultrafeedback-binarized-preferences-cleaned": [
            {"prompt": f"q{i}", "chosen": preferred, "rejected": []} for i in range(1500)
        ],
    }
    judged = tmp_path / "alpaca_eval.json"
    judged.write_text(json.dumps([{"instruction": "Why?", "output": "So.", "generator": "g", "dataset": "d"}]))
    asked = []

    def load_dataset(name, configuration, split, revision):
        asked.append((name, split))
        return _Rows(content[name])

    def hf_hub_download(name, filename, repo_type):
        asked.append((name, filename, repo_type))
        return str(judged)

    monkeypatch.setattr("fedreft_lib.data.hub._check_reachable", lambda endpoint, name: None)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    return asked


def test_alpaca_keeps_its_inputs_and_drops_empty_outputs(hub):
    assert instruction.load("alpaca", "train", source="hub") == [WITH_INPUT, Exchange("alpaca", "Say ho.", "Ho.")]
    assert hub == [("yahma/alpaca-cleaned", "train")]


def test_ultrafeedback_1k_is_the_first_thousand_after_a_shuffle_with_the_preferred_response(hub):
    read = instruction.load("ultrafeedback_1k", "train", source="hub")
    assert [e.question for e in read] == [f"q{i}" for i in range(1499, 499, -1)]
    assert {e.response for e in read} == {"good"}


@pytest.mark.parametrize("task", instruction.HUB)
def test_the_hub_tasks_are_tested_on_alpaca_eval(hub, task):
    assert instruction.load(task, "test", source="hub") == [Exchange(task, "Why?", "So.")]
    assert hub == [("tatsu-lab/alpaca_eval", "alpaca_eval.json", "dataset")]


def test_a_hub_file_that_cannot_be_had_is_named(hub, monkeypatch):
    def gone(*args, **kwargs):
        raise OSError("404\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", gone)
    with pytest.raises(DataError, match=r"^The hub dataset tatsu-lab/alpaca_eval could not be loaded \(404\)\.$"):
        instruction.load("alpaca", "test", source="hub")


# ---- local and synthetic ----------------------------------------------------------------------------------------


def test_a_file_of_your_own_may_be_any_task(tmp_path):
    (tmp_path / "recipes_train.jsonl").write_text('{"instruction": "Cook.", "input": "egg", "output": "Boil it."}\n')
    read = instruction.load("recipes", "train", source="local", data_dir=str(tmp_path))
    assert read == [Exchange("recipes", f"Cook.{INPUT_MARK}egg", "Boil it.")]
    assert instruction.load("recipes", "dev", source="local", data_dir=tmp_path) == []


def test_synthetic_exchanges_can_be_learnt_from_the_training_split():
    train, test = (instruction.load("telegram", split, source="synthetic") for split in ("train", "test"))
    assert not {e.uid for e in train} & {e.uid for e in test}
    # An independent learner: the phrase that all share, and the word of the question that some response ended with.
    (phrase,) = {e.response.rsplit(" ", 1)[0] for e in train}
    endings = {e.response.rsplit(" ", 1)[1].rstrip(".") for e in train}
    for exchange in test:
        (word,) = endings & set(exchange.question.split())
        assert exchange.response == f"{phrase} {word}."
    assert max(Counter(e.response for e in test).values()) < len(test) / 4
    assert train == instruction.load("telegram", "train", source="synthetic")
    assert train != instruction.load("telegram", "train", source="synthetic", seed=1)
    assert not endings & {e.response.rsplit(" ", 1)[1].rstrip(".") for e in _synthetic("tale")}


def _synthetic(task):
    return instruction.load(task, "train", source="synthetic")


# ---- prompts ----------------------------------------------------------------------------------------------------


def test_the_alpaca_frame_is_pyreft_s():
    # pyreft/dataset.py imports much; its two frames are read from the file as it stands.
    source = Path(util.find_spec("pyreft").submodule_search_locations[0], "dataset.py").read_text(encoding="utf-8")
    frames: dict[str, str] = {}
    exec(source[source.index("prompt_input = ") : source.index("import os")], frames)
    assert instruction.prompt(PLAIN, "llm_adapters") == frames["prompt_no_input"] % "Say {hi}."
    assert instruction.prompt(WITH_INPUT, "llm_adapters") == frames["prompt_input"] % ("Say it.", "hi")


def test_the_plain_prompt_is_short():
    assert instruction.prompt(PLAIN, "plain") == "Question: Say {hi}.\nAnswer:"
    assert instruction.prompt(WITH_INPUT, "plain") == "Question: Say it.\nhi\nAnswer:"


# ---- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, split, source, said",
    [
        ("alpaca", "train", "packaged", "the instruction tasks telegram, steps, tale, card, got 'alpaca'; .*local"),
        ("tale", "train", "hub", "the instruction tasks ultrafeedback_1k, alpaca, got 'tale'"),
        ("tale", "valid", "packaged", "split must be one of train, dev, test, got 'valid'"),
        ("tale", "train", "web", "source must be one of packaged, hub, local, synthetic, got 'web'"),
        ("tale", "train", "local", "give it as data_dir"),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(task, split, source, said):
    with pytest.raises(ConfigError, match=said):
        instruction.load(task, split, source=source)


def test_a_prompt_format_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="prompt_format must be one of llm_adapters, plain, got 'chat'"):
        instruction.prompt(PLAIN, "chat")


def test_every_packaged_task_is_a_style():
    assert set(instruction.PACKAGED) == set(STYLES) <= set(instruction.TASKS)
