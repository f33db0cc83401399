"""A LLaMA model in llama.cpp's GGUF format becomes a Hugging Face folder that every transformers version loads alike.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

Why convert: transformers 4.45 loads such a file silently wrong (head not tied, a stray BOS), transformers 5 loads it
right but slowly, and splits "  7" (two spaces before a digit) differently from SmolLM2's training tokenizer.

Sources: llama.cpp `convert_hf_to_gguf.py` (tensor names; the permutation of q and k that is undone here) and
`llama-vocab.cpp` (pre-tokenizer "smollm": every digit alone, then GPT-2's rule).
"""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm.auto import tqdm

CONTROL_TOKEN = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL: <|im_start|> and the like
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # absent where the head is tied to the embedding
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, folder: Path, progress: bool = True) -> None:
    """Write the model and tokenizer of the GGUF file `source` into the existing, empty `folder`.

    Weights are stored in float16. A Q4_1 weight is d * q + m with d, m in float16 and q in 0..15, so float16 keeps it
    to 1 part in 2000, far below the quantisation step; float32 would double the file for the same perplexity.

    Raises ValueError for an architecture or a tokenizer other than LLaMA's and SmolLM's.
    """
    reader = gguf.GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    for key, expected in {"general.architecture": "llama", "tokenizer.ggml.pre": "smollm"}.items():
        if meta.get(key) != expected:
            raise ValueError(f"{source.name} has {key} = {meta.get(key)!r}, only {expected!r} can be converted")

    bar = tqdm(reader.tensors, desc=f"convert {source.stem}", unit="tensor", disable=not progress, leave=False)
    tensors = {hf_name(t.name): hf_tensor(t, meta).astype(np.float16) for t in bar}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    build_tokenizer(meta).save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", model_config(meta, tied="lm_head.weight" not in tensors))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(meta))
    _write_json(folder / "generation_config.json", special_ids(meta))


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def hf_tensor(tensor: gguf.ReaderTensor, meta: dict) -> np.ndarray:
    """The dequantised float32 values in Hugging Face's order of rows."""
    values = gguf.dequantize(tensor.data, tensor.tensor_type)  # (out, in)
    if tensor.name.endswith("attn_q.weight"):
        return unpermute(values, meta["llama.attention.head_count"])
    if tensor.name.endswith("attn_k.weight"):
        return unpermute(values, meta["llama.attention.head_count_kv"])
    return values


def unpermute(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of q and k.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), ... of a head; Hugging Face rotates row i with row i + half.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(n_heads, rows // n_heads // 2, 2, columns)  # (head, pair, member, in)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def build_tokenizer(meta: dict) -> Tokenizer:
    """Byte-level BPE from the file's own tokens, merges and control tokens; nothing is added to a text (no BOS)."""
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer


def model_config(meta: dict, tied: bool) -> dict:
    """config.json in the old spelling (rope_theta, torch_dtype), which transformers 4.45 and 5 both read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": meta["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        **special_ids(meta),
    }


def tokenizer_config(meta: dict) -> dict:
    """The class that loads tokenizer.json as it is (both versions know the name), special tokens, chat template."""
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "chat_template": meta["tokenizer.chat_template"],
    }


def special_ids(meta: dict) -> dict:
    """The ids that config.json and generation_config.json state alike."""
    return {
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
