"""A backbone's identity changes with all that its values depend on, and with nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from fedreft_lib.data import downloads
from fedreft_lib.errors import FedReFTError
from fedreft_lib.model import identity
from fedreft_lib.model import weights as packaged_weights
from fedreft_lib.model.identity import backbone_identity


@pytest.fixture
def home(all_hashes_remembered, decoder) -> Path:
    """A folder with a backbone."""
    shutil.copytree(decoder, all_hashes_remembered / "model")
    return all_hashes_remembered


def test_all_that_from_pretrained_may_read_counts_and_nothing_else(home):
    folder = home / "model"
    names = {backbone_identity(str(folder))}

    def write(name: str, text: str, counts: bool = True) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        found = backbone_identity(str(folder))
        assert (found not in names) == counts, name
        names.add(found)

    for name in ("merges.txt", "spiece.model", "x.tiktoken", "pytorch_model.bin", "extra.jinja", "modeling.py"):
        write(name, "1")
        write(name, "2")
    write("parts/model-00001.safetensors", "1", counts=False)
    write("model.safetensors.index.json", json.dumps({"weight_map": {"a": "parts/model-00001.safetensors"}}))
    write("parts/model-00001.safetensors", "2")
    write("x.index.json", '{"weight_map": [1]}')
    write("tokenizer.json", "{damaged")
    for name in ("README.md", "optimizer.pt", "tf_model.h5", "checkpoint-1/model.safetensors"):
        write(name, "1", counts=False)
    (folder / "merges.txt").rename(folder / "vocab.txt")
    assert backbone_identity(str(folder)) not in names  # names are part of it


def test_an_adapter_in_the_folder_stands_for_its_base_as_well(home):
    shutil.copytree(home / "model", home / "base")
    said = {"base_model_name_or_path": str(home / "base")}
    (home / "model/adapter_config.json").write_text(json.dumps(said))
    before = backbone_identity(str(home / "model"))
    (home / "base/config.json").write_text("{}")
    assert backbone_identity(str(home / "model")) != before


def test_every_kind_of_backbone_has_an_identity(home, monkeypatch):
    assert backbone_identity("tiny-llama") == "tiny-llama"
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    folder = backbone_identity(str(home / "model"))
    assert [backbone_identity(name) for name in ("model", "./model", "~/model")] == 3 * [folder]
    asset = backbone_identity("minilm-l6-v2")
    assert downloads.ASSETS["minilm-l6-v2"].sha256[:16] in asset
    with monkeypatch.context() as patch:
        patch.setattr(packaged_weights, "converter_version", lambda: "newer")
        patch.setattr(identity, "converter_version", lambda: "newer")
        assert backbone_identity("minilm-l6-v2") != asset
    for name in ("./gone", "~/gone", "/gone"):
        with pytest.raises(FedReFTError, match="There is no folder"):
            backbone_identity(name)
    for nonsense in ("a b", "a/b/c", "-"):
        assert backbone_identity(nonsense) == "hub"


def test_of_a_backbone_on_the_hub_the_commit_in_the_cache_counts(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert backbone_identity("some/model") == "hub"
    place = tmp_path / "models--some--model"
    (place / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
        (place / "refs/main").write_text(commit)
        assert backbone_identity("some/model") == f"hub {commit}"
    assert not identity.may_be_same("hub a", "hub b") and identity.may_be_same("hub a", "hub")
    assert not identity.may_be_same("folder a", "hub") and not identity.may_be_same("tiny-llama", "tiny-roberta")
