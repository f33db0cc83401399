"""A model with a table of positions says how long a text it can read; one without does not make up an end."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    CTRLConfig,
    DebertaV2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LongformerConfig,
    MixtralConfig,
    NystromformerConfig,
    OPTConfig,
    RobertaConfig,
)

from fedreft_lib.model.position_tables import most_tokens

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1}
BERT_LIKE = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 40}
GPT_LIKE = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "pad_token_id": 1}
ENDED = {
    "bert": (AutoModel, BertConfig(**BERT_LIKE)),
    "roberta": (AutoModel, RobertaConfig(**BERT_LIKE)),
    "longformer": (AutoModel, LongformerConfig(**BERT_LIKE, attention_window=8)),
    "nystromformer": (AutoModel, NystromformerConfig(**BERT_LIKE)),
    "gpt2": (AutoModelForCausalLM, GPT2Config(**GPT_LIKE)),
    "gptj": (AutoModelForCausalLM, GPTJConfig(**GPT_LIKE, rotary_dim=4)),
    "ctrl": (AutoModelForCausalLM, CTRLConfig(**GPT_LIKE, dff=64)),
    "opt": (
        AutoModelForCausalLM,
        OPTConfig(**SIZES, max_position_embeddings=40, ffn_dim=64, word_embed_proj_dim=32),
    ),
}
ENDLESS = {
    "llama": (AutoModelForCausalLM, LlamaConfig(**BERT_LIKE)),
    "gpt_neox": (AutoModelForCausalLM, GPTNeoXConfig(**BERT_LIKE)),
    "mixtral": (
        AutoModelForCausalLM,
        MixtralConfig(**BERT_LIKE, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    ),
    "deberta-v2": (
        AutoModel,
        DebertaV2Config(
            **BERT_LIKE, relative_attention=True, position_biased_input=False, pos_att_type=["c2p", "p2c"],
            max_relative_positions=40,
        ),
    ),
}  # fmt: skip


def built(auto, config):
    torch.manual_seed(0)
    return auto.from_config(config).eval()


def reads(model, tokens: int) -> None:
    with torch.no_grad():
        model(input_ids=torch.randint(5, 60, (1, tokens)))


@pytest.mark.parametrize("family", ENDED)
def test_the_longest_text_can_be_read_and_a_longer_one_cannot(family):
    model = built(*ENDED[family])
    longest = most_tokens(model)
    reads(model, longest)
    with pytest.raises((IndexError, RuntimeError)):
        reads(model, longest + 1)


@pytest.mark.parametrize("family", ENDLESS)
def test_a_model_that_can_read_on_has_no_longest_text(family):
    model = built(*ENDLESS[family])
    assert most_tokens(model) is None
    reads(model, 60)


def test_a_model_that_cannot_be_read_at_all_says_nothing_of_positions():
    model = built(*ENDED["bert"])
    model.encoder = None
    assert most_tokens(model) is None
