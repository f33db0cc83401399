"""Each end token that a model or its tokenizer names ends a generated text; padding is a token that the model has."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from fedreft_lib import load_backbone
from fedreft_lib.errors import FedReFTError
from tests.helpers.tokenizers import SPECIAL, tokenizer

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def saved(folder, *, ends, named=None, vocabulary=None, **changed):
    """A folder with a random decoder whose generation config has the end tokens `ends`."""
    tok = tokenizer("bytes")
    for name, value in changed.items():
        setattr(tok, name, value)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary or len(tok), **TINY, eos_token_id=named))
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("ends", "found"),
    [([7, 5], (2, 5, 7)), (5, (2, 5)), ([2, 2, 5], (2, 5)), (None, (2,)), ([5, 10**6], (2, 5))],
)
def test_each_end_token_of_the_generation_config_and_of_the_tokenizer_ends_a_text(tmp_path, ends, found):
    assert load_backbone(str(saved(tmp_path, ends=ends))).end_ids == found


def test_the_packaged_and_the_tiny_decoder_end_texts_as_they_did():
    backbone = load_backbone("tiny-llama")
    assert backbone.end_ids == (backbone.tokenizer.eos_token_id,)


def test_a_tokenizer_without_an_end_token_gets_the_one_that_the_model_names(tmp_path):
    backbone = load_backbone(str(saved(tmp_path / "one", ends=3, eos_token=None)))
    assert backbone.tokenizer.eos_token == SPECIAL[3] and backbone.end_ids == (3,)
    backbone = load_backbone(str(saved(tmp_path / "two", ends=[3, 1], eos_token=None)))
    assert backbone.tokenizer.eos_token_id is None and backbone.end_ids == (1, 3)  # which of them is nobody's to say
    backbone = load_backbone(str(saved(tmp_path / "none", ends=None, eos_token=None)))
    assert backbone.tokenizer.eos_token_id is None and backbone.end_ids == ()


def test_a_pad_token_that_the_model_has_no_embedding_of_is_another_special_one(tmp_path):
    size = len(tokenizer("bytes"))
    backbone = load_backbone(str(saved(tmp_path, ends=2, vocabulary=size, pad_token="<filler>")))
    assert backbone.vocabulary == size and len(backbone.tokenizer) == size + 1
    assert backbone.tokenizer.pad_token == "<unk>"


def test_a_tokenizer_with_no_special_token_that_the_model_has_is_one_sentence(tmp_path):
    nothing = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"))
    with pytest.raises(FedReFTError, match="no special token that the model has an embedding of"):
        load_backbone(str(saved(tmp_path, ends=None, **nothing)))


def test_another_pad_token_than_the_models_own_leaves_positions_and_hidden_states_of_roberta_as_they_are(tmp_path):
    torch.manual_seed(0)
    tok = tokenizer("words", "bos and eos")
    config = RobertaConfig(vocab_size=len(tok), **TINY, max_position_embeddings=40, pad_token_id=3, type_vocab_size=1)
    RobertaModel(config).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    right = load_backbone(str(tmp_path), dtype="float32")
    files = tmp_path / "tokenizer_config.json"
    kept = json.loads(files.read_text())
    files.write_text(json.dumps({name: value for name, value in kept.items() if name != "pad_token"}))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    other = load_backbone(str(tmp_path), dtype="float32")
    assert (right.tokenizer.pad_token_id, other.tokenizer.pad_token_id) == (3, 0)
    for backbone in (right, other):
        ids = [backbone.tokenizer(text).input_ids for text in ("the sea is red", "red")]
        padded = torch.full((2, len(ids[0])), backbone.tokenizer.pad_token_id)
        for row, each in enumerate(ids):
            padded[row, : len(each)] = torch.tensor(each)
        mask = torch.arange(len(ids[0])) < torch.tensor([[len(each)] for each in ids])
        with torch.no_grad():
            found = backbone.model.cpu()(input_ids=padded, attention_mask=mask.long()).last_hidden_state
            alone = backbone.model(input_ids=torch.tensor([ids[1]])).last_hidden_state
        torch.testing.assert_close(found[1, : len(ids[1])], alone[0], rtol=1e-4, atol=1e-5)
