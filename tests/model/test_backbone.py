"""A backbone is frozen, the same at every call and on every stack, and what cannot be loaded is one sentence."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, LlamaConfig, RobertaConfig, T5Config

from fedreft_lib.errors import AssetError, ConfigError, FedReFTError
from fedreft_lib.model import backbone as module
from fedreft_lib.model.backbone import choose_device, choose_dtype, fingerprint, kind_of, load_backbone

TINY = ["tiny-llama", "tiny-roberta"]
CPU = torch.device("cpu")


def last_hidden(backbone, texts=("A frozen model.", "Für 12 €, immer gleich!")):
    inputs = backbone.tokenizer(list(texts), return_tensors="pt", padding=True)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        hidden = backbone.model.base_model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    return hidden * mask.unsqueeze(-1)  # (B, T, d), padding blanked


@pytest.fixture
def saved(tmp_path):
    """A folder that save_pretrained wrote."""
    original = load_backbone("tiny-llama")
    original.model.save_pretrained(tmp_path)
    original.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", TINY)
def test_a_backbone_is_frozen_and_without_dropout(name):
    backbone = load_backbone(name)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not any(child.training for child in backbone.model.modules())
    assert torch.equal(last_hidden(backbone), last_hidden(backbone))


@pytest.mark.parametrize(("name", "kind"), [("tiny-llama", "causal"), ("tiny-roberta", "encoder")])
def test_a_backbone_says_what_it_is(name, kind):
    backbone = load_backbone(name)
    assert (backbone.kind, backbone.n_layers, backbone.hidden_size) == (kind, 4, 64)
    assert (backbone.dtype, backbone.device) == (torch.float32, backbone.model.device)
    assert all(type(layer).__name__ in ("LlamaDecoderLayer", "RobertaLayer") for layer in backbone.layers)
    weights = [tensor for tensor in backbone.model.state_dict().values() if tensor.is_floating_point()]
    assert backbone.n_parameters == sum(tensor.numel() for tensor in weights)


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_is_the_same_at_every_call_and_leaves_the_global_generator_alone(name):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = load_backbone(name)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(2)
    second = load_backbone(name)
    assert first.fingerprint == second.fingerprint
    assert torch.equal(last_hidden(first), last_hidden(second))


def test_a_tiny_model_is_the_same_on_every_stack():
    """The digits were measured on both stacks."""
    assert [load_backbone(name).fingerprint for name in TINY] == ["788f9ab070c9dd17", "7ed5fa6e451dff24"]


@pytest.mark.parametrize("name", TINY)
def test_the_byte_tokenizer_gives_texts_back_and_can_pad(name):
    tokenizer = load_backbone(name).tokenizer
    for text in ["plain", " spaces  and\ttabs\n", "Größe 12 €", "😀"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) == len(text.encode()) + (2 if name == "tiny-roberta" else 0)
    written_out = tokenizer("a" + tokenizer.eos_token)["input_ids"]
    assert written_out.count(tokenizer.eos_token_id) == (2 if name == "tiny-roberta" else 1)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_padding_does_not_change_a_tiny_models_hidden_states():
    for name in TINY:
        backbone = load_backbone(name)
        alone, together = last_hidden(backbone, ["short"]), last_hidden(backbone, ["short", "a good deal longer"])
        torch.testing.assert_close(together[0, : alone.shape[1]], alone[0], rtol=1e-5, atol=1e-5)


def test_a_saved_model_loads_from_its_folder_with_equal_logits(saved):
    original, again = load_backbone("tiny-llama"), load_backbone(str(saved), dtype="float32", device="cpu")
    ids = torch.tensor([original.tokenizer("the same logits")["input_ids"]])
    assert again.tokenizer("the same logits")["input_ids"] == ids[0].tolist()
    assert torch.equal(original.model.cpu()(ids).logits, again.model(ids).logits)
    assert (again.kind, again.fingerprint) == (original.kind, original.fingerprint)


def test_the_fingerprint_follows_the_weights_not_the_dtype(saved):
    wide, narrow = load_backbone(str(saved), dtype="float32"), load_backbone(str(saved), dtype="bfloat16")
    assert narrow.dtype == torch.bfloat16 and wide.fingerprint == narrow.fingerprint
    wide.layers[2].mlp.up_proj.weight.mul_(1.01)
    assert fingerprint(wide.model) != narrow.fingerprint


def test_loading_from_a_folder_is_silent(saved, capfd):
    load_backbone(str(saved))
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_without_pad_token_gets_one(saved):
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (saved / file).exists():
            text = (saved / file).read_text()
            (saved / file).write_text(text.replace('"pad_token": "<pad>"', '"pad_token": null'))
    tokenizer = load_backbone(str(saved)).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token == "<eos>"


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    with pytest.raises(FedReFTError, match="holds no config.json"):
        load_backbone(str(tmp_path))
    with pytest.raises(FedReFTError, match="There is no folder"):
        load_backbone(str(tmp_path / "missing"))


def with_weights(saved, change):
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})


def with_settings(saved, **changes):
    settings = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**settings, **changes}))


@pytest.mark.parametrize(
    "left_out",
    ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias",
     "model.layers.1.self_attn.q_norm.weight", "model.norm.bias", "lm_head.bias"],
)  # fmt: skip
def test_weights_that_the_config_leaves_out_are_one_sentence(saved, left_out):
    if "layers.2" in left_out:
        with_settings(saved, num_hidden_layers=2)
    else:
        with_weights(saved, lambda tensors: tensors.update({left_out: torch.ones(64)}))
    with pytest.raises(FedReFTError, match="weights that its config.json leaves out .*; put its config.json right"):
        load_backbone(str(saved))


def test_weights_that_do_not_matter_are_passed_over(saved, tmp_path_factory):
    """Old files have rotary frequencies; a model for another task has a head of its own."""
    with_weights(saved, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert load_backbone(str(saved)).fingerprint == load_backbone("tiny-llama").fingerprint
    encoder = load_backbone("tiny-roberta")
    other = AutoModelForSequenceClassification.from_config(encoder.model.config)
    folder = tmp_path_factory.mktemp("classifier")
    other.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    assert load_backbone(str(folder)).n_layers == 4


def test_several_models_in_one_are_refused_before_any_weight_is_read(tmp_path):
    parts = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if "gemma3" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no gemma3")
    vision = {**parts, "image_size": 28, "patch_size": 14}
    CONFIG_MAPPING["gemma3"](text_config=parts, vision_config=vision).save_pretrained(tmp_path)
    load_backbone("tiny-llama").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(FedReFTError, match="is several models in one .*: use a folder that holds its language model"):
        load_backbone(str(tmp_path))


def test_missing_and_damaged_weights_are_one_sentence(saved):
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(FedReFTError, match=r"lack 1 of the model's weights \(model.layers.1.mlp.up_proj.weight"):
        load_backbone(str(saved))
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(FedReFTError, match="could not be loaded") as caught:
        load_backbone(str(saved))
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(FedReFTError, match="could not be loaded"):
        load_backbone(str(saved))


def test_an_asset_that_holds_data_is_no_backbone():
    with pytest.raises(AssetError, match="'olmo-data' holds data"):
        load_backbone("olmo-data")


def test_a_dtype_or_device_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="dtype must be 'auto' or one of float32, bfloat16, float16, got 'int8'"):
        choose_dtype("int8", CPU)
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used here"):
        choose_device("abacus")


def test_auto_dtype_is_bfloat16_only_where_the_cpu_multiplies_it(monkeypatch):
    for flags, expected in [({"avx512_bf16": True}, torch.bfloat16), ({"avx512_f": True}, torch.float32)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert choose_dtype("auto", CPU) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_dtype("auto", CPU) == torch.float32


def test_the_kind_follows_from_the_configuration():
    assert kind_of(LlamaConfig()) == "causal"
    assert kind_of(RobertaConfig()) == "encoder"
    assert kind_of(RobertaConfig(architectures=["RobertaForMaskedLM"])) == "encoder"
    assert kind_of(RobertaConfig(architectures=["RobertaForCausalLM"])) == "causal"


def test_an_encoder_decoder_is_refused(tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(FedReFTError, match="t5 is an encoder-decoder"):
        load_backbone(str(tmp_path))


@pytest.mark.packaged
def test_the_packaged_llama_knows_its_geography(packaged):
    packaged("smollm2-135m-instruct")
    backbone = load_backbone("smollm2-135m-instruct", device="cpu")
    assert (backbone.kind, backbone.n_layers, backbone.hidden_size) == ("causal", 30, 576)
    assert backbone.n_parameters == 134_515_008  # 134.5 M, the tied head counted once
    ids = backbone.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert backbone.tokenizer.decode(backbone.model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.packaged
def test_the_packaged_encoder_brings_like_meanings_together(packaged):
    packaged("minilm-l6-v2")
    backbone = load_backbone("minilm-l6-v2", device="cpu")
    assert (backbone.kind, backbone.n_layers, backbone.hidden_size) == ("encoder", 6, 384)
    hidden = last_hidden(backbone, ["A man eats food.", "Someone is having a meal.", "The sky is full of stars."])
    mean = torch.nn.functional.normalize(hidden.float().sum(1), dim=-1)  # (3, d)
    assert mean[0] @ mean[1] > mean[0] @ mean[2] + 0.2


@pytest.mark.packaged
def test_the_packaged_weights_keep_their_fingerprint(packaged):
    packaged("minilm-l6-v2")
    assert load_backbone("minilm-l6-v2").fingerprint == "8b985e3fb0b425b0"


def test_compiled_products_are_few_unless_the_user_says_how_many(monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    load_backbone("tiny-llama")
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert os.environ["LRU_CACHE_CAPACITY"] == module.PRODUCTS["LRU_CACHE_CAPACITY"]


def test_names_that_can_be_no_folder_are_one_sentence():
    for name in ("x" * 5000, "~nobody_has_this_name/model"):
        with pytest.raises(FedReFTError, match="^There can be no folder"):
            load_backbone(name)
