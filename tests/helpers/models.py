"""Random models of any size for tests, as Backbones."""

import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from fedreft_lib.core.sites import Sites
from fedreft_lib.model.adapters import AtSites
from fedreft_lib.model.architectures import find_layers
from fedreft_lib.model.backbone import Backbone, load_backbone
from fedreft_lib.model.fast.packed_attention import install
from fedreft_lib.model.steered import SteeredModel
from tests.helpers import tokenizers

KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "bert": (BertConfig, BertModel),
    "roberta": (RobertaConfig, RobertaModel),
}


def random_backbone(kind="llama", *, d=32, layers=3, seed=0):
    """A frozen random model with the tokenizer of the tiny models; initialised wide, so that positions matter."""
    torch.manual_seed(seed)
    tokenizer = load_backbone("tiny-llama" if kind == "llama" else "tiny-roberta").tokenizer
    config_class, model_class = KINDS[kind]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=d,
        intermediate_size=2 * d,
        num_hidden_layers=layers,
        num_attention_heads=4,
        initializer_range=0.2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = model_class(config).eval().requires_grad_(False)
    install(model)
    return Backbone("random", model, tokenizer, "causal" if kind == "llama" else "encoder", find_layers(model), "0")


def saved_decoder(folder, kind=LlamaConfig, **changes) -> str:
    """A folder with a random decoder of four blocks, with two heads for each key, and a tokenizer of whole words."""
    torch.manual_seed(0)
    tok = tokenizers.tokenizer("bytes")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": tok.pad_token_id}
    model = AutoModelForCausalLM.from_config(kind(vocab_size=len(tok), **{**sizes, **changes}))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def random_state(model: SteeredModel, seed=1, start="random"):
    return model.start(start, seed)


def steered(backbone, intervention, *, layers=(0, 2), prefix=2, suffix=2, tied=False, rank=4) -> SteeredModel:
    sites = Sites(tuple(layers), prefix, suffix, tied)
    return SteeredModel(backbone, AtSites(intervention, sites, rank, backbone.hidden_size))
