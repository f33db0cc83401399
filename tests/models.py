"""Random models of any size for tests, as Backbones."""

import torch
import transformers

from fedreft_lib.adapters import AtSites
from fedreft_lib.attention import install
from fedreft_lib.backbone import Backbone, find_layers, load_backbone
from fedreft_lib.sites import Sites
from fedreft_lib.steering import SteeredModel

ENCODERS = {"bert": "Bert", "roberta": "Roberta"}
# pyreft's own transformers does not know all of them.
DECODERS = {
    kind: name
    for kind, name in {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}.items()
    if hasattr(transformers, f"{name}Config")
}


def random_backbone(kind="llama", *, d=32, layers=3, seed=0):
    """A frozen random model with the tokenizer of the tiny models; initialised wide, so that positions matter."""
    torch.manual_seed(seed)
    decodes = kind in DECODERS
    tokenizer = load_backbone("tiny-llama" if decodes else "tiny-roberta").tokenizer
    name = DECODERS[kind] if decodes else ENCODERS[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer),
        hidden_size=d,
        intermediate_size=2 * d,
        num_hidden_layers=layers,
        num_attention_heads=4,
        initializer_range=0.2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        **({"num_key_value_heads": 4} if decodes else {}),
    )
    model = getattr(transformers, f"{name}{'ForCausalLM' if decodes else 'Model'}")(config).eval().requires_grad_(False)
    install(model)
    return Backbone("random", model, tokenizer, "causal" if decodes else "encoder", find_layers(model), "0")


def random_state(model: SteeredModel, seed=1, start="random"):
    return model.start(start, seed)


def steered(backbone, intervention, *, layers=(0, 2), prefix=2, suffix=2, tied=False, rank=4) -> SteeredModel:
    sites = Sites(tuple(layers), prefix, suffix, tied)
    return SteeredModel(backbone, AtSites(intervention, sites, rank, backbone.hidden_size))
