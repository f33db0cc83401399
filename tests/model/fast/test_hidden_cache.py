"""Hidden states below the first site: the same bits from a file as from the model, and never from a wrong file."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedreft_lib import AtSites, LoReFT, Sites, load_backbone, run
from fedreft_lib.errors import DamageWarning
from fedreft_lib.federation.assembly import _build, assemble
from fedreft_lib.files import write_tensors
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.model.adapters import InLinears
from fedreft_lib.model.fast import hidden_cache, hidden_files
from fedreft_lib.model.fast.hidden_cache import HiddenCache, key_of, offer
from fedreft_lib.model.fast.hidden_files import used
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens, encode
from fedreft_lib.model.ways import Ways
from tests.helpers.federations import small
from tests.helpers.models import random_backbone


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The cache's folder, not there yet."""
    monkeypatch.setenv("FEDREFT_HIDDEN_STATES", str(tmp_path / "kept"))
    return tmp_path / "kept"


def steered(backbone=None, layers=(2,)) -> SteeredModel:
    backbone = backbone or load_backbone("tiny-llama")
    return SteeredModel(backbone, AtSites(LoReFT, Sites(layers, 2, 2), 2, backbone.hidden_size))


def read(model: SteeredModel, n: int = 9) -> list[Tokens]:
    """Questions of different lengths with two options each."""
    tokenizer = model.backbone.tokenizer
    prompts = [f"Question {i}: {'why ' * (i % 4)}?" for i in range(n)]
    return [encode(tokenizer, prompt, [" yes", " not at all"], max_length=64) for prompt in prompts]


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def the_file(place: Path) -> Path:
    (path,) = place.iterdir()
    return path


def in_their_order(model, sequences) -> list:
    """What `hidden_below` says of the list in the order in which the cache reads it."""
    order = sorted(range(len(sequences)), key=lambda i: repr(sequences[i]))
    found = dict(zip(order, model.hidden_below([sequences[i] for i in order]), strict=True))
    return [found[i] for i in range(len(sequences))]


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_gives_the_bits_that_the_model_gives(place, dtype):
    model = steered(load_backbone("tiny-llama", dtype=dtype))
    sequences = read(model)
    expected = in_their_order(model, sequences)
    assert same(HiddenCache(model).states(sequences), expected)
    model.hidden_below = None  # not called again
    assert same(HiddenCache(model).states(sequences), expected)
    assert used(place) == the_file(place).stat().st_size


def test_a_list_in_another_order_shares_the_file(place):
    model = steered()
    sequences = read(model)
    ours = HiddenCache(model).states(sequences)
    model.hidden_below = None
    assert same(HiddenCache(model).states(sequences[::-1]), ours[::-1])


def test_a_run_has_the_same_results_from_files_as_from_a_fresh_computation(place):
    def fresh_process():
        _build.cache_clear()
        return run(small(mixing="adaptive", rounds=2), progress=False)

    computed = fresh_process()
    before = {path: path.stat().st_ino for path in place.iterdir()}
    mapped = fresh_process()
    assert {path: path.stat().st_ino for path in place.iterdir()} == before and before
    assert torch.equal(computed.states, mapped.states)
    columns = ["round", "client", "metric", "value"]
    assert computed.history[columns].equals(mapped.history[columns])
    _build.cache_clear()


def test_a_long_list_is_kept_in_parts(place, monkeypatch):
    model = steered()
    sequences = read(model)
    monkeypatch.setattr(hidden_cache, "PART", 3 * 64 * 4 * max(len(s.ids) for s in sequences))
    first = HiddenCache(model).states(sequences)
    assert len(list(place.iterdir())) > 2
    assert [len(h) for h in first] == [len(s.ids) for s in sequences]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, model.hidden_below(sequences), strict=True))
    model.hidden_below = None
    assert same(HiddenCache(model).states(sequences), first)


def test_nothing_to_read_is_nothing_to_keep(place):
    assert HiddenCache(steered()).states([]) == [] and not place.exists()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_states_are_mapped_not_read_into_memory(place):
    model = steered()
    found = HiddenCache(model).states(read(model))
    path = the_file(place)
    spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    low, high = (int(end, 16) for end in spans[0][0].split("-"))
    assert all(low <= hidden.data_ptr() < high for hidden in found)
    path.unlink()  # as the user may, at any time
    assert same(found, in_their_order(model, read(model)))


# ---- what a file is for ---------------------------------------------------------------------------------------------


def test_everything_that_the_bits_depend_on_makes_another_key(monkeypatch):
    model = steered()
    sequences = read(model)
    first, *rest = sequences
    other = load_backbone("tiny-llama")
    with torch.no_grad():
        other.layers[1].mlp.up_proj.weight[3, 7] += 1e-3  # less than the backbone's fingerprint is sure to see
    theta = load_backbone("tiny-llama")
    theta.model.config.rms_norm_eps = 1e-3
    keys = {
        "as it is": key_of(model, sequences),
        "weights": key_of(steered(other), sequences),
        "config": key_of(steered(theta), sequences),
        "dtype": key_of(steered(load_backbone("tiny-llama", dtype="bfloat16")), sequences),
        "layer": key_of(steered(layers=(3,)), sequences),
        "list": key_of(model, rest),
        "ids": key_of(model, [replace(first, ids=(5, *first.ids[1:])), *rest]),
        "prompt": key_of(model, [replace(first, prompt_length=first.prompt_length - 1), *rest]),
        "answers": key_of(model, [replace(first, answer_lengths=(5, first.answer_lengths[1] - 1)), *rest]),
        "segments": key_of(model, [replace(first, segments=(0,) * len(first.ids)), *rest]),
    }
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    keys["threads"] = key_of(model, sequences)
    monkeypatch.setattr(hidden_cache, "_sources", lambda: "another code")
    keys["code"] = key_of(model, sequences)
    assert len(set(keys.values())) == len(keys)


def test_the_key_leaves_out_what_no_hidden_state_depends_on():
    backbone = load_backbone("tiny-llama")
    sequences = read(steered(backbone))
    model = SteeredModel(backbone, AtSites(LoReFT, Sites((2, 3), 5, 1, True), 4, 64))
    assert key_of(model, sequences) == key_of(steered(backbone), sequences)
    above = load_backbone("tiny-llama")
    with torch.no_grad():
        above.layers[3].mlp.up_proj.weight += 1
    assert key_of(steered(above), sequences) == key_of(steered(backbone), sequences)


# ---- damage ---------------------------------------------------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def pickled(path):
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")


def empty(path):
    path.write_bytes(b"")


def other_shape(path):
    write_tensors({"hidden": load_file(path)["hidden"][1:]}, path, {"key": path.stem})


def other_dtype(path):
    write_tensors({"hidden": load_file(path)["hidden"].bool()}, path, {"key": path.stem})


def other_tensors(path):
    write_tensors({"X": torch.zeros(2)}, path, {"key": path.stem})


def of_another_key(path):
    write_tensors(load_file(path), path, {"key": "0" * 64})


def without_a_hash(path):
    save_file({"hidden": load_file(path)["hidden"] + 1}, path)


@pytest.mark.parametrize(
    "damage",
    [
        truncated, flipped, pickled, empty, other_shape, other_dtype, other_tensors, of_another_key, without_a_hash
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_it_was_written_is_computed_anew_with_one_sentence(place, damage):
    model = steered()
    sequences = read(model)
    expected = [hidden.clone() for hidden in HiddenCache(model).states(sequences)]
    path = the_file(place)
    whole = path.read_bytes()
    path.unlink()  # the mapped one is left alone
    path.write_bytes(whole)
    damage(path)
    with pytest.warns(DamageWarning, match="computed anew") as told:
        assert same(HiddenCache(model).states(sequences), expected)
    assert len(told) == 1 and str(path) in str(told[0].message) and "\n" not in str(told[0].message)
    model.hidden_below = None  # the file is whole again
    assert same(HiddenCache(model).states(sequences), expected) and the_file(place) == path


def test_a_cache_that_cannot_be_written_is_told_once_and_the_states_stay_in_memory(place):
    place.write_text("a file where the folder would be")
    model = steered()
    sequences = read(model)
    cache = HiddenCache(model)
    with pytest.warns(UserWarning, match="takes no more hidden states .*: they stay in memory") as told:
        assert same(cache.states(sequences), in_their_order(model, sequences))
        assert same(cache.states(sequences[:4]), in_their_order(model, sequences[:4]))
    assert len(told) == 1 and place.is_file()


def test_a_disk_that_is_full_while_it_is_written_leaves_no_scraps(place, monkeypatch):
    def full(tensors, path, notes):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    model = steered()
    with pytest.warns(UserWarning, match="No space left on device"):
        found = HiddenCache(model).states(read(model))
    assert same(found, in_their_order(model, read(model))) and not list(place.iterdir())


def test_a_folder_that_may_only_be_read_is_read(place, monkeypatch):
    model = steered()
    expected = HiddenCache(model).states(read(model))
    refused = OSError(30, "Read-only file system")
    monkeypatch.setattr(hidden_cache.os, "utime", lambda path: (_ for _ in ()).throw(refused))
    model.hidden_below = None
    assert same(HiddenCache(model).states(read(model)), expected)


def test_what_neither_disk_nor_memory_takes_is_not_kept(place, monkeypatch):
    monkeypatch.setattr(hidden_files, "DISK_LIMIT", 1000)
    model = steered()
    with pytest.warns(UserWarning, match="are the most that it may hold"):
        assert HiddenCache(model).states(read(model)) is not None
    monkeypatch.setattr(hidden_cache, "MEMORY_LIMIT", 1000)
    assert HiddenCache(model).states(read(model)) is None
    assert not place.exists()


def test_two_processes_that_write_the_same_states_do_each_other_no_harm(place, monkeypatch):
    model = steered()
    sequences = read(model)
    ours = write_tensors

    def meanwhile(tensors, path, notes):
        monkeypatch.setattr(hidden_cache, "write_tensors", ours)
        HiddenCache(model).states(sequences)  # the other one is faster
        ours(tensors, path, notes)

    monkeypatch.setattr(hidden_cache, "write_tensors", meanwhile)
    assert same(HiddenCache(model).states(sequences), in_their_order(model, sequences))
    the_file(place)


# ---- room -----------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_go_first(place, monkeypatch):
    model = steered()
    lists = [[sequence] for sequence in read(model, 4)]
    size = 0
    for age, each in enumerate(lists[:3]):
        HiddenCache(model).states(each)
        for path in place.iterdir():
            if path.stat().st_mtime > 1000:
                os.utime(path, (age, age))
                size = max(size, path.stat().st_size)
    oldest, second, third = sorted(place.iterdir(), key=lambda path: path.stat().st_mtime)
    HiddenCache(model).states(lists[0])  # used again
    (place / "mine.safetensors").write_bytes(bytes(100))  # whatever is not the cache's own stays
    monkeypatch.setattr(hidden_files, "DISK_LIMIT", 3 * size + 10)
    HiddenCache(model).states(lists[3])
    assert oldest.exists() and third.exists() and not second.exists()
    assert len(list(place.iterdir())) == 4 and used(place) <= 3 * size + 10


def test_no_more_than_a_quarter_of_the_free_disk_is_taken(place, monkeypatch):
    monkeypatch.setattr(hidden_files.shutil, "disk_usage", lambda path: type("", (), {"free": 4000}))
    assert hidden_files.limit(place) == 1000
    monkeypatch.setattr(hidden_files, "used", lambda place: 800)
    assert hidden_files.limit(place) == 1200
    monkeypatch.setattr(hidden_files, "used", lambda place: 1 << 60)
    assert hidden_files.limit(place) == hidden_files.DISK_LIMIT


def test_the_cache_is_beside_the_packaged_weights_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("FEDREFT_HIDDEN_STATES", "/b")
    monkeypatch.setenv("FEDREFT_CACHE", "/a")
    assert hidden_files.folder() == Path("/b")
    monkeypatch.delenv("FEDREFT_HIDDEN_STATES")
    assert hidden_files.folder() == Path("/a/hidden_states")


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_a_run_says_in_its_manifest_what_there_is_to_keep():
    llama = load_backbone("tiny-llama")
    lora = InLinears.of(llama, LoRA(1.0), (0, 1), 2, ("q_proj",))
    fast, apart = Ways("packed"), Ways("apart")
    from_the_start = "nothing to keep: the state acts from the first blocks on"
    assert offer(steered(llama), small(), fast) == "the output of block 2 is computed once and kept"
    assert offer(steered(llama), small(), apart) == "nothing is kept: options are read apart"
    assert offer(steered(llama, (0, 1, 2, 3)), small(), fast) == from_the_start
    assert offer(SteeredModel(llama, lora), small(), fast) == from_the_start
    bert = steered(random_backbone("bert"))
    assert offer(bert, small(), fast) == "nothing to keep: a bert model cannot start in the middle"
    assert offer(steered(llama), small(sampled=2), fast).startswith("nothing is kept: most clients' data is read a")
    assert assemble(small(sampled=2)).clients[0].train.hidden is None and assemble(small()).clients[0].train.hidden
    assert assemble(small(sampled=2, rounds=8)).clients[0].train.hidden  # each is drawn four times
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manifest = run(small(layers="all", rounds=1), progress=False).manifest
    assert manifest["cache"].startswith("nothing to keep")
