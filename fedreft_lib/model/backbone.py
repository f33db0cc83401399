"""The frozen language model that all clients share: load it, freeze it, find its blocks.

`load_backbone(name)` takes, in this order,

    "tiny-llama", "tiny-roberta"               random weights from a fixed seed, no download (tests, profile smoke)
    "smollm2-135m-instruct", "minilm-l6-v2"    packaged weights, see data.downloads
    a folder                                   written by `save_pretrained`
    anything else                              a name on the Hugging Face hub
"""

import hashlib
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import transformers
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ..data.downloads import ASSETS, packaged_models
from ..errors import FedReFTError, did_you_mean
from . import position_tables, special_tokens
from .architectures import ARCHITECTURES, BLOCKS, count_parameters, empty_model, find_layers, fit, kind_of
from .device import choose_device, choose_dtype
from .fast.packed_attention import install
from .identity import TINY, folder_of
from .tiny import build_tiny
from .ways import Ways, setting
from .weights import backbone_folder

# transformers 4.56 renamed the argument: the old name warns there, and earlier versions do not know the new one.
DTYPE_ARGUMENT = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"
# oneDNN keeps a compiled product for each number of rows that it has seen, a third of a megabyte each, up to 1,024 in
# each of two caches. Packed batches rarely have the same number twice and would fill both.
# A step needs 30 to 45 products, and one with ten or more grids (see packed_attention) loses a tenth.
PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
HUB_TIMEOUT = 10  # seconds for the hub's first answer; transformers itself tries for 23 s and more

REFUSALS = (  # the hub client's error, the status if that matters, its meaning; the first that fits is used
    (HFValidationError, None, "{name!r} can be neither a folder nor a model on the hub; check the spelling."),
    (
        GatedRepoError,
        None,
        "The model {name} is gated: accept its terms on {page}, then log in with `hf auth login` or set HF_TOKEN.",
    ),
    (RepositoryNotFoundError, None, "The hub has no model {name!r} that this user may read{others}"),
    (HfHubHTTPError, 401, "The hub wants a valid token for {name}: log in with `hf auth login`, or renew HF_TOKEN."),
    (HfHubHTTPError, 403, "The token may not read {name}; give it access to gated models, or use another one."),
)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A model in evaluation mode, without gradients for its parameters, and its tokenizer, which has a pad token.

    >>> backbone = load_backbone("tiny-llama")
    >>> backbone.kind, backbone.n_layers, backbone.hidden_size
    ('causal', 4, 64)
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: Literal["causal", "encoder"]
    layers: nn.ModuleList  # the transformer blocks, lowest first
    fingerprint: str  # of the weights, the same in every dtype and on every device
    identity: str = ""  # of the files that it was loaded from, see `identity`
    # Results of SteeredModel.ways, and of its trials.
    ways: dict[tuple, Ways] = field(default_factory=dict, init=False, repr=False)
    tried: dict[tuple, Ways | FedReFTError] = field(default_factory=dict, init=False, repr=False)

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a generated text; () where only max_new_tokens ends it."""
        return special_tokens.end_ids(self.model, self.tokenizer)

    @property
    def vocabulary(self) -> int:
        """How many token embeddings the model has; its tokenizer may have more or fewer tokens."""
        return special_tokens.vocabulary(self.model)

    @property
    def segments(self) -> int:
        """How many texts of one input the model can distinguish."""
        return setting(self.model.config, "type_vocab_size") or 1

    @cached_property
    def most_tokens(self) -> int | None:
        """The most tokens of a text, where a table of positions limits them; else None."""
        return position_tables.most_tokens(self.model)

    @property
    def n_parameters(self) -> int:
        """How many numbers the model has; a tied head counts once."""
        return count_parameters(self.model)


def load_backbone(name: str, dtype: str | torch.dtype = "auto", device: str | torch.device = "auto") -> Backbone:
    """Load, freeze and move the model `name`.

    device "auto": the GPU where there is one. dtype "auto": bfloat16 where the device multiplies it natively (there
    it is about 3 times as fast as float32), else float32; float32 always for the tiny models.

    Before it downloads the weights of a hub model, it prints their size and the free memory.

    Raises ConfigError for a dtype or device that does not exist here, AssetError for a packaged model that cannot be
    fetched, FedReFTError for a folder or a hub name that cannot be loaded, or whose weights do not fit into memory.
    """
    device = choose_device(device)
    for variable, capacity in PRODUCTS.items():
        os.environ.setdefault(variable, capacity)
    if device.type == "cuda":  # a repetition then gives the same bits as far as torch can; torch warns of the rest
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    if name in TINY:
        model, tokenizer = build_tiny(name)
        model.to(choose_dtype("float32" if dtype == "auto" else dtype, device))
    else:
        source, local = _locate(name)
        model, tokenizer = _load(name, source, local, choose_dtype(dtype, device), device)
    model.eval().requires_grad_(False)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # only hidden states are read, and many checkpoints (RoBERTa) have no pooler
    install(model)
    special_tokens.settle(name, model, tokenizer)
    return Backbone(
        name=name,
        model=_moved(model, device, name),
        tokenizer=tokenizer,
        kind=kind_of(model.config),
        layers=find_layers(model),
        fingerprint=fingerprint(model),
    )


def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits that identify the weights: names, shapes and up to 4096 evenly spaced values of each parameter.

    Values are rounded to bfloat16 first, so loading the same file as float32 or as bfloat16 gives the same digits.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        sample = values[:: math.ceil(values.numel() / 4096)].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _locate(name: str) -> tuple[str, bool]:
    """The argument for `from_pretrained`, and whether to read local files only."""
    if name in ASSETS:
        return str(backbone_folder(name)), True
    if folder := folder_of(name):
        if not (folder / "config.json").is_file():
            raise FedReFTError(f"The folder {name} holds no config.json; name a folder that save_pretrained() wrote.")
        return str(folder), True
    return name, not _hub_answers(name)


def _hub_answers(name: str) -> bool:
    """Ask the hub once, quickly, whether this user may read the model; False where the hub cannot be reached."""
    try:
        if HfApi().model_info(name, timeout=HUB_TIMEOUT).gated:
            HfApi().auth_check(name)
    except Exception as error:  # every version of the hub client and its transports has its own classes
        if refusal := _refusal(name, error):
            raise FedReFTError(refusal) from error
        return False
    return True


def _refusal(name: str, error: BaseException | None) -> str | None:
    """The meaning of the hub's answer, for the user; None where neither `error` nor its cause is such an answer.

    Causes count because transformers wraps the hub client's errors in OSErrors.
    """
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        for kind, code, sentence in REFUSALS:
            if isinstance(error, kind) and code in (None, status):
                others = did_you_mean(name, ARCHITECTURES, f"the models that need no hub are {_own_models()}.")
                return sentence.format(name=name, page=f"{constants.ENDPOINT}/{name}", others=others)
        error = error.__cause__ or error.__context__
    return None


def _load(
    name: str, source: str, local: bool, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Configuration, tokenizer and all weights. An error becomes one sentence."""
    where = {"local_files_only": local, "trust_remote_code": False}
    from_hub = not Path(source).is_dir()
    try:
        with _quiet(bars=not local):
            config = AutoConfig.from_pretrained(source, **where)
            if config.is_encoder_decoder:
                raise FedReFTError(
                    f"The model {name} cannot be used: {config.model_type} is an encoder-decoder, not a decoder or an "
                    "encoder."
                )
            empty = empty_model(config)
            find_layers(empty)  # before anything large is read
            size = fit(name, empty, dtype, device)
            if from_hub:
                tqdm.write(size)
            auto = AutoModelForCausalLM if kind_of(config) == "causal" else AutoModel
            # transformers 4.45 warns without this argument; False is the default of transformers 5.
            tokenizer = AutoTokenizer.from_pretrained(source, clean_up_tokenization_spaces=False, **where)
            model, report = auto.from_pretrained(
                source, config=config, output_loading_info=True, **{DTYPE_ARGUMENT: dtype}, **where
            )
    except FedReFTError:
        raise
    except Exception as error:  # the loaders raise a dozen classes, most of them for a missing or damaged file
        if from_hub and (refusal := _refusal(name, error)):
            raise FedReFTError(refusal) from error
        if from_hub and local:
            asked = "HF_HUB_OFFLINE forbids to ask the hub" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
            raise FedReFTError(
                f"The model {name} is not on this machine, or not all of it, and {asked}; change that, name a folder, "
                f"or use one of {_own_models()}."
            ) from error
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise FedReFTError(f"The model {name} could not be loaded ({type(error).__name__}: {reason}).") from error
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise FedReFTError(
            f"The files of {name} lack {len(missing)} of the model's weights ({missing[0]} is one); download or save "
            "the model again."
        )
    if left_out := sorted(key for key in report["unexpected_keys"] if _belongs(key, model)):
        raise FedReFTError(
            f"The files of {name} hold {len(left_out)} weights that its config.json leaves out ({left_out[0]} is one), "
            "so the model would be another one than was trained; put its config.json right, or save the model again."
        )
    return model, tokenizer


def _belongs(key: str, model: PreTrainedModel) -> bool:
    """Whether a weight without a place in the model belongs to a block, or to a module that the model has.

    Others do not matter: heads for other tasks, and what a model computes itself (rotary frequencies, masks).
    """
    if key.endswith(("inv_freq", ".masked_bias")):
        return False
    prefix = f"{model.base_model_prefix}."
    for path in (key, key.removeprefix(prefix), prefix + key):
        module, _, leaf = path.rpartition(".")
        with suppress(AttributeError):
            return bool(module) and getattr(model.get_submodule(module), leaf, None) is None
    return re.search(rf"(^|\.)({'|'.join(BLOCKS)})\.\d+\.", key) is not None


def _moved(model: PreTrainedModel, device: torch.device, name: str) -> PreTrainedModel:
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise FedReFTError(f"{name} does not fit into the memory of {device}; use device='cpu'.") from error


def _own_models() -> str:
    return ", ".join([*TINY, *packaged_models()])


@contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Silences transformers' long reports of unused weights, and its bars unless `bars`. Errors stay."""
    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
