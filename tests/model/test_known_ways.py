"""The result of a trial serves the next process, and no model, machine or code that it was not found with."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from fedreft_lib import AtSites, LoReFT, Sites, load_backbone
from fedreft_lib.environment import environment
from fedreft_lib.errors import FedReFTError
from fedreft_lib.model import agreement, known_ways, shared
from fedreft_lib.model.backbone import Backbone
from fedreft_lib.model.identity import UNKNOWN
from fedreft_lib.model.shared import shared_backbone
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.ways import Ways


@pytest.fixture
def tried(tmp_path, monkeypatch) -> list[tuple[int, bool]]:
    """The trials that are made, each with its size and whether it generates; nothing is known at first."""
    monkeypatch.setenv("FEDREFT_HIDDEN_STATES", str(tmp_path / "kept"))
    monkeypatch.setattr(shared, "_shared", {})
    trials, found = [], agreement.found

    def counted(model, size: int, writes: bool) -> Ways:
        trials.append((size, writes))
        return found(model, size, writes)

    monkeypatch.setattr(agreement, "found", counted)
    return trials


def next_process(name: str = "tiny-llama", dtype: str = "float32") -> Backbone:
    """The backbone as a process has it that has just loaded it."""
    shared._shared.clear()
    return shared_backbone(name, dtype, "cpu")


def ways(backbone: Backbone, longest: int = 20, *, writes: bool = False) -> Ways:
    d = backbone.hidden_size
    return SteeredModel(backbone, AtSites(LoReFT, Sites((1,), prefix=1, suffix=1), 2, d)).ways(longest, writes=writes)


def test_the_next_process_makes_no_trial(tried):
    assert ways(next_process()) == ways(next_process()) == ways(load_backbone("tiny-llama"))
    assert tried == [(64, False), (64, False)]  # the second one by the last, which is not known by its files
    tried.clear()
    assert ways(next_process(), writes=True) == ways(next_process(), writes=True)  # generation needs its own
    assert ways(next_process(), 100) == ways(next_process(), 100)
    assert tried == [(64, True), (128, False)]


def test_a_slower_way_is_tried_anew_since_the_reason_may_pass(tried, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(agreement, "_scores", lambda trial, texts: trial.ways(0).layout == "apart")
        assert ways(next_process()) == ways(next_process()) == Ways("apart") and len(tried) == 2
    assert ways(next_process()) == ways(next_process()) != Ways("apart") and len(tried) == 3


def test_another_model_machine_or_code_is_tried_anew(tried, decoder, monkeypatch):
    def is_tried(backbone: Backbone) -> bool:
        before = len(tried)
        ways(backbone)
        return len(tried) > before

    assert is_tried(next_process(decoder)) and not is_tried(next_process(decoder))
    assert is_tried(next_process("tiny-llama"))
    assert is_tried(next_process(decoder, "bfloat16"))
    weights, config, modules = (next_process(decoder) for _ in range(3))
    with torch.no_grad():
        next(weights.model.parameters()).mul_(2)
    config.model.config.rms_norm_eps *= 2
    modules.layers[0].mlp = torch.nn.Sequential(modules.layers[0].mlp)
    assert all(map(is_tried, (weights, config, modules)))
    here = environment()
    for name, value in (
        ("products", lambda device: "of another processor"),
        ("environment", lambda device: {**here, "code": "another"}),
        ("environment", lambda device: {**here, "versions": "others"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(known_ways, name, value)
            assert is_tried(next_process(decoder))
    assert not is_tried(next_process(decoder))


def looks_ahead(model):
    for layer in model.model.layers:
        layer.self_attn.is_causal = False


def mixes_tokens(model):
    model.model.layers[1].register_forward_hook(lambda module, args, output: output + output.mean(1, keepdim=True))


def mixes_inputs(model):
    model.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0] + args[0].mean(1, keepdim=True),))


def caps_logits(model):
    forward = model.forward

    def capped(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output

    model.forward = capped


def has_an_own_attention(model):
    model.config._attn_implementation = "flex_attention"


@pytest.mark.parametrize("edit", [looks_ahead, mixes_tokens, mixes_inputs, caps_logits, has_an_own_attention])
def test_what_somebody_has_put_into_the_model_is_tried(tried, edit, tmp_path):
    ways(next_process())
    edited = next_process()
    edit(edited.model)
    with suppress(FedReFTError):
        ways(edited)
    trials = len(tried)
    assert trials > 1
    # A hash tells of an attribute, and old versions of transformers do not read this one.
    assert edit is looks_ahead or len(list((tmp_path / "kept").iterdir())) == 1
    ways(next_process())
    assert len(tried) == trials  # what is kept is still that of the model as it is


def test_a_trial_in_other_numbers_is_not_kept(tried, tmp_path):
    with torch.autocast("cpu", torch.bfloat16), suppress(FedReFTError):
        ways(next_process())
    assert len(tried) == 1 and not (tmp_path / "kept").exists()


def test_a_backbone_that_is_not_known_by_its_files_is_tried_each_time(tried, tmp_path):
    for backbone in (load_backbone("tiny-llama"), replace(load_backbone("tiny-llama"), identity=UNKNOWN)):
        before = len(tried)
        ways(backbone)
        assert len(tried) == before + 1
    assert not (tmp_path / "kept").exists()


def test_every_damaged_file_is_tried_anew_and_mended(tried, tmp_path):
    right = ways(next_process())
    (kept,) = (tmp_path / "kept").iterdir()
    whole = kept.read_bytes()
    for i in range(0, len(whole), 7):
        for damaged in (whole[:i], whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]):
            kept.write_bytes(damaged)
            before = len(tried)
            assert ways(next_process()) == right and len(tried) == before + 1
            assert kept.read_bytes() == whole


def test_without_a_place_to_write_each_process_makes_its_trial(tried, tmp_path):
    (tmp_path / "kept").write_text("a file where the folder would be")
    assert ways(next_process()) == ways(next_process()) and len(tried) == 2


def test_a_text_that_the_model_cannot_read_is_refused_each_time(tried, monkeypatch):
    def refused(backbone, ids, more):
        raise agreement.UnreadableError("too long")

    monkeypatch.setattr(agreement, "_read", refused)
    for _ in range(2):
        with pytest.raises(agreement.UnreadableError):
            ways(next_process(), 64)
    assert len(tried) == 2
