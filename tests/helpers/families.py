"""A tiny random model of every family that the installed transformers can build from a configuration.

`python -m tests.helpers.families` prints the table of them: which ways of reading are right, or why it is refused.
"""

import contextlib
import copy
import inspect
import os
import sys

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fedreft_lib.core.interventions import LoReFT
from fedreft_lib.core.sites import Sites
from fedreft_lib.errors import FedReFTError
from fedreft_lib.model.adapters import AtSites
from fedreft_lib.model.architectures import find_layers
from fedreft_lib.model.backbone import Backbone, load_backbone
from fedreft_lib.model.fast.packed_attention import install
from fedreft_lib.model.steered import SteeredModel

DECODERS, ENCODERS = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), list(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
LARGEST = 5_000_000  # parameters; what has more does not go by the names below
# What configurations call their sizes, with a small one for each.
SMALL = {
    64: "hidden_size d_model n_embd dim embedding_size embed_dim word_embed_proj_dim lru_width attention_hidden_size",
    128: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner d_ff d_inner ffn_hidden_size "
    "intermediate_size_mlp dim_ff mamba_d_ssm max_position_embeddings n_positions n_ctx max_seq_len",
    32: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
    "moe_ffn_hidden_size",
    300: "vocab_size vocab_size_per_layer_input",
    16: "head_dim q_lora_rank kv_lora_rank v_head_dim sliding_window window_size attention_window_size "
    "attention_chunk_size state_size mamba_d_state ssm_state_size mamba_d_head mamba_head_dim mamba_headdim "
    "mamba_chunk_size chunk_size linear_key_head_dim linear_value_head_dim index_head_dim hidden_size_per_layer_input",
    8: "qk_rope_head_dim qk_nope_head_dim mamba_n_heads mamba_num_heads num_mamba_heads index_topk rotary_dim",
    4: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_attention_heads n_head n_heads "
    "num_heads decoder_attention_heads encoder_attention_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts linear_num_value_heads",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_topk moe_k index_n_heads expand "
    "mamba_expand linear_num_key_heads type_vocab_size eos_token_id",
    1: "n_group n_groups topk_group n_shared_experts mamba_n_groups mamba_ngroups bos_token_id",
    0: "pad_token_id",
}
NOT_WIDTHS = {"sliding_window", "window_size", "attention_window_size", "attention_chunk_size", "mamba_chunk_size",
              "chunk_size", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"}  # fmt: skip
OWN = {  # what a family needs besides
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.3, "embedding_multiplier": 2.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "esmc": {"num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "xlstm": {"qk_dim_factor": 1.0},
    "gemma3n_text": {"num_kv_shared_layers": 0},
}
# Their attention's head_dim is that of its rotary part.
ROTARY = ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash",
          "minicpm3", "youtu")  # fmt: skip


def tiny_config(family: str, scale: int = 1, **more) -> PretrainedConfig:
    """scale: of the widths."""
    kind = CONFIG_MAPPING[family]
    known = {*inspect.signature(kind.__init__).parameters, *kind().to_dict()}
    sizes = {name: size for size, names in SMALL.items() for name in names.split() if name in known}
    if scale != 1:
        wide = {name for size in (128, 64, 32, 16) for name in SMALL[size].split()} - NOT_WIDTHS
        sizes = {name: size * (scale if name in wide else 1) for name, size in sizes.items()}
    if family in ROTARY:
        sizes["head_dim"] = 8
    return kind(**{**sizes, **OWN.get(family, {}), **more})


def build(family: str, kind: str, seed: int = 0, **more) -> PreTrainedModel:
    """kind: "causal" or "encoder". Raises whatever the library raises where such a configuration is none."""
    config, auto = tiny_config(family, **more), AutoModelForCausalLM if kind == "causal" else AutoModel
    with torch.device("meta"):
        parameters = sum(p.numel() for p in auto.from_config(copy.deepcopy(config)).parameters())
    if parameters > LARGEST:
        raise ValueError(f"{family} has {parameters} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # wide, so that everything a token sees matters
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    model.eval().requires_grad_(False)
    install(model)
    return model


def backbone_of(family: str, kind: str, **more) -> Backbone:
    """Raises FedReFTError for a family that is refused."""
    model = build(family, kind, **more)
    tokenizer = load_backbone("tiny-llama" if kind == "causal" else "tiny-roberta").tokenizer
    return Backbone(family, model, tokenizer, kind, find_layers(model), "0")


def can_be_built(family: str, kind: str) -> bool:
    """Some families want sizes of their own, libraries that are not here, or images."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            build(family, kind)(input_ids=torch.arange(10, 50)[None])
        except Exception:  # each has its own reason
            return False
    return True


def steered(backbone: Backbone, layers=(0, 3), rank: int = 2) -> SteeredModel:
    return SteeredModel(backbone, AtSites(LoReFT, Sites(layers, 2, 2), rank, backbone.hidden_size))


def said(family: str, kind: str, longest: int) -> str:
    """How texts of up to `longest` tokens are read, or why the family is refused."""
    try:
        return str(steered(backbone_of(family, kind)).ways(longest))
    except FedReFTError as error:
        return f"refused: {error}"


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(f"transformers {transformers.__version__}; texts of 14 and of 100 tokens (windows are 16)")
    counts: dict[str, int] = {}
    for kind, families in (("causal", DECODERS), ("encoder", ENCODERS)):
        for family in families:
            if not can_be_built(family, kind):
                what = "not built here"
            else:
                short, long = (said(family, kind, n) for n in (14, 100))
                what = short if short == long else f"{short} | {long}"
            group = what if what in ("fast", "not built here") else "refused" if what[:7] == "refused" else "slower"
            counts[group] = counts.get(group, 0) + 1
            print(f"{kind:8s} {family:26s} {what}", flush=True)
    print(counts)


if __name__ == "__main__":
    sys.exit(main())
