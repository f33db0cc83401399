"""The tiny models: random weights from a fixed seed, bytes as tokens, no download."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

TINY_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
TINY_LENGTH = 2048  # tokens; in a tiny model these are bytes


def build_tiny(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The random model `name`, one of `identity.TINY`, in float32, and its tokenizer: every byte is a token."""
    if name == "tiny-llama":
        tokenizer = _byte_tokenizer({"pad_token": "<pad>", "eos_token": "<eos>"})
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            num_key_value_heads=2,
            max_position_embeddings=TINY_LENGTH,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **TINY_SIZES,
        )
        auto = AutoModelForCausalLM
    else:
        tokenizer = _byte_tokenizer({"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"})
        config = RobertaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=TINY_LENGTH + tokenizer.pad_token_id + 1,  # RoBERTa counts from pad_token_id + 1
            type_vocab_size=1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **TINY_SIZES,
        )
        auto = AutoModel
    with torch.random.fork_rng(devices=[]):  # building a model draws from the global generator
        model = auto.from_config(config)
    _fill(model)
    return model, tokenizer


def _byte_tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    """The special tokens, then the 256 bytes. Where there is a bos (RoBERTa), a text stands between bos and eos."""
    tokens = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special.values()])
    if "bos_token" in special:
        bos, eos = special["bos_token"], special["eos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A {eos}",
            pair=f"{bos} $A {eos} {eos} $B {eos}",
            special_tokens=[(token, tokens.index(token)) for token in (bos, eos)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=TINY_LENGTH, clean_up_tokenization_spaces=False, **special
    )


@torch.no_grad()
def _fill(model: PreTrainedModel) -> None:
    """Matrices from N(0, 1/d), in the order of their names, so activations are of order one; biases 0, norms 1.

    The initialisation order of a transformers version does not matter, so the weights are the same on every stack.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.dim() > 1:
            parameter.normal_(0, model.config.hidden_size**-0.5, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
