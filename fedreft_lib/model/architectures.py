"""The size of a backbone before any download: parameters, linear modules, trainable numbers, memory.

`ARCHITECTURES` holds the shapes of the hub models that the paper and ReFT use, from their config.json files. Settings
without parameters (rotary frequencies, limits on length, dropout) are left out. A table entry or any configuration
gives a model on torch's meta device, where tensors have shapes but no values, so counts are exact.

    LoReFT   2 r d + r   for each site (a layer and a group of positions): R, W (r x d), b (r)
    LoRA     r d_in + r d_out   for each linear module: A (r x d_in), B (d_out x r)
    Fed-SB   r^2   for each linear module: A and B are frozen
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, RobertaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..errors import ConfigError, FedReFTError, did_you_mean
from .linears import places
from .ways import setting

Sizes = tuple[type[PretrainedConfig], dict]
BLOCKS = ("layers", "layer", "h", "blocks", "block")  # models' names for the list of their transformer blocks


def _llama(vocabulary: int, d: int, inner: int, layers: int, heads: int, groups: int, tied: bool = False) -> Sizes:
    return LlamaConfig, {
        "vocab_size": vocabulary,
        "hidden_size": d,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": tied,
    }


def _roberta(d: int, inner: int, layers: int, heads: int) -> Sizes:
    return RobertaConfig, {
        "vocab_size": 50265,
        "hidden_size": d,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    }


# LLaMA-1 has no official name on the hub: pyreft's scripts use yahma's, whose tokenizer has the correct end token.
ARCHITECTURES: dict[str, Sizes] = {
    "meta-llama/Llama-3.2-3B": _llama(128_256, 3072, 8192, 28, 24, 8, tied=True),
    "meta-llama/Meta-Llama-3-8B": _llama(128_256, 4096, 14_336, 32, 32, 8),
    "meta-llama/Llama-2-7b-hf": _llama(32_000, 4096, 11_008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": _llama(32_000, 5120, 13_824, 40, 40, 40),
    "yahma/llama-7b-hf": _llama(32_000, 4096, 11_008, 32, 32, 32),
    "yahma/llama-13b-hf": _llama(32_000, 5120, 13_824, 40, 40, 40),
    "FacebookAI/roberta-base": _roberta(768, 3072, 12, 12),
    "FacebookAI/roberta-large": _roberta(1024, 4096, 24, 16),
}


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks: a list with a name in `BLOCKS` and one entry for each hidden layer.

    Raises FedReFTError where there is none: some models use one block several times, or are several models in one.
    """
    config = model.config
    depth = setting(config, "num_hidden_layers")
    if depth is None or setting(config, "hidden_size") is None:
        raise FedReFTError(
            f"{type(model).__name__} is several models in one (its config.json has no width and depth of its own): use "
            "a folder that holds its language model alone."
        )
    for path, module in model.named_modules():
        if path.rsplit(".", 1)[-1] in BLOCKS and isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise FedReFTError(
        f"No list of {depth} transformer blocks was found in {type(model).__name__}; use a model like LLaMA, BERT or "
        "RoBERTa."
    )


def skeleton(name: str) -> PreTrainedModel:
    """The hub model `name` without values or memory. Raises ConfigError for a name that is not in the table.

    >>> count_parameters(skeleton("meta-llama/Llama-3.2-3B"))
    3212749824
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"no architecture is known for {name!r}{did_you_mean(name, ARCHITECTURES)}")
    kind, sizes = ARCHITECTURES[name]
    return empty_model(kind(**sizes))


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model that `load_backbone` would load for this configuration, on the meta device."""
    auto = AutoModelForCausalLM if kind_of(config) == "causal" else AutoModel
    with torch.device("meta"):
        return auto.from_config(copy.deepcopy(config))  # some versions write into it


def kind_of(config: PretrainedConfig) -> Literal["causal", "encoder"]:
    """Models of BERT's family (all that can fill masks) are encoders, unless the weights are a causal model's."""
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or []):
        return "causal"
    return "encoder" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "causal"


# --- counts -----------------------------------------------------------------------------------------------------------


def count_parameters(model: nn.Module) -> int:
    """How many numbers a model has; a tied head counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def linear_shapes(model: PreTrainedModel, targets: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """For each linear module that `targets` name (see `linears`): how many blocks have it, d_in and d_out.

    Raises ConfigError for a target that no linear module of the blocks has.
    """
    found = places(dict(enumerate(find_layers(model))), targets, model.config.model_type)
    return {name: (len(place.layers), *place.dims) for name, place in found.items()}


def loreft_params(model: PreTrainedModel, rank: int, groups: int, layers: int | None = None) -> int:
    """Trainable numbers of LoReFT with `groups` position groups (2: prefix and suffix, untied) in `layers` layers."""
    d = model.config.hidden_size
    return (model.config.num_hidden_layers if layers is None else layers) * groups * (2 * rank * d + rank)


def lora_params(model: PreTrainedModel, rank: int, targets: Sequence[str]) -> tuple[int, int]:
    """Numbers in all A, and in all B. LoRA trains both, FFA-LoRA only B, and FedSA-LoRA sends only A."""
    shapes = linear_shapes(model, targets).values()
    return sum(n * rank * d_in for n, d_in, _ in shapes), sum(n * rank * d_out for n, _, d_out in shapes)


def fedsb_params(model: PreTrainedModel, rank: int, targets: Sequence[str]) -> int:
    """Trainable numbers of Fed-SB (LoRA-SB): one r x r matrix for each module."""
    return sum(n * rank**2 for n, _, _ in linear_shapes(model, targets).values())


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes that a run needs. The weights are exact; `batch` is an upper bound for the largest batch."""

    weights: int
    states: int
    batch: int

    @property
    def total(self) -> int:
        return self.weights + self.states + self.batch

    def __str__(self) -> str:
        parts = f"weights {_gib(self.weights)}, states {_gib(self.states)}, a full batch {_gib(self.batch)}"
        return f"up to {_gib(self.total)} of memory ({parts})"


def memory_estimate(
    model: PreTrainedModel, dtype: torch.dtype, *, trainable: int = 0, clients: int = 0, tokens: int = 0
) -> Memory:
    """An upper bound for a run of `model` (a skeleton is enough) in `dtype`.

    trainable: numbers in one client's state. tokens: of one batch, batch_size * max_length, all of them read.

        weights   parameters * s                                        s: bytes of a number in `dtype`
        states    4 * trainable * (3 * clients + 4)                     float32: before, trained, received; AdamW's
                                                                        copy, gradient and two moments of one client
        batch     tokens * (layers * (s (6 d + 4 f) + 8 d) + V (2 s + 12))

    d, f, V: hidden size, inner size, vocabulary. A block keeps the queries, keys, values and output of attention (4 d),
    three tensors in the MLP (3 f), a float32 input of each norm (8 d) and, with LoRA, its modules' inputs (2 d + f).
    Logits are kept in `dtype` and, with their gradient, in float32. Attention scores count as recomputed.
    A step over 8 x 128 tokens of SmolLM2-135M, all of them answers, took 1.2 of 1.4 GiB in bfloat16, 1.8 of 2.2 in
    float32. A batch that is shorter than max_length, or has few answer tokens, takes much less.
    """
    config, size = model.config, dtype.itemsize
    d, inner = config.hidden_size, config.intermediate_size
    block = size * (6 * d + 4 * inner) + 8 * d
    logits = config.vocab_size * (2 * size + 12) if kind_of(config) == "causal" else 0
    return Memory(
        weights=count_parameters(model) * size,
        states=4 * trainable * (3 * clients + 4),
        batch=tokens * (config.num_hidden_layers * block + logits),
    )


def free_memory(device: torch.device) -> int:
    """Free bytes on `device`. A container may have only a part of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, _left_to_the_container())


def fit(name: str, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> str:
    """One line: the size of the weights of `model` in `dtype`, and the free memory on `device`.

    Raises FedReFTError where they do not fit there, or into the machine's memory, which they pass on the way to a GPU.
    """
    weights = count_parameters(model) * dtype.itemsize
    needs = f"about {_gib(weights)} in {str(dtype).removeprefix('torch.')}"
    for place in dict.fromkeys((torch.device("cpu"), device)):
        left = free_memory(place)
        free = f"{_gib(left)} are free on {place}"
        if weights > left:
            narrower = ", dtype='bfloat16'" if dtype.itemsize > 2 else ""
            raise FedReFTError(f"{name} needs {needs}, {free}: use a smaller backbone{narrower} or a larger machine.")
    return f"{name}: {count_parameters(model) / 1e9:.3g} B parameters, {needs}; {free}"


def _left_to_the_container(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Free bytes under the control group's limit (Linux, version 2). File pages that can be dropped count as free."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or no limit (the file then says "max")
        return psutil.virtual_memory().total
    return limit - used + int(fields.get("inactive_file", 0))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
