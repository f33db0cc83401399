"""The result of a trial (`agreement`), kept for the next process: a trial takes as long as two training steps.

Beside the hidden states, one small file for each model, size and machine. A file's name is a hash of everything that a
trial depends on: the backbone's files, its weights as they are now, its modules and their settings, config, dtype and
device, the code of the library, and versions. Each process makes its own trials

    for a backbone that does not come from `shared_backbone`, and so is not known by its files
    where something has been put into the model, or into torch, that no hash can tell: hooks, another forward pass, an
    attention of the user's own, autocast
    where a slower way was found: the reason may have been a lack of memory
"""

import hashlib
from collections.abc import Callable

import torch
from torch import nn

from ..environment import code_fingerprint, environment, products
from ..files import keep_text, kept_text
from .agreement import layouts
from .backbone import Backbone, fingerprint
from .fast.hidden_files import folder
from .fast.packed_attention import NAME
from .identity import UNKNOWN
from .ways import Ways, settings

code_fingerprint()  # of the files as they are now: they may be edited before the first trial


def tried_once(backbone: Backbone, size: int, writes: bool, trial: Callable[[], Ways]) -> Ways:
    """The result of a trial with texts of `size` tokens, or that of an earlier one, maybe in another process."""
    if not _known(backbone):
        return trial()
    origin, fastest = _origin(backbone, size, writes), Ways(layouts(backbone, size)[0])
    path = folder() / f"{origin}.ways.txt"
    if kept_text(path, origin) == repr(fastest):
        return fastest
    ways = trial()
    if ways == fastest:
        keep_text(path, origin, repr(fastest))
    return ways


def _known(backbone: Backbone) -> bool:
    """Whether a hash can tell what the trial will read."""
    return (
        backbone.identity not in ("", UNKNOWN)
        and backbone.model.config._attn_implementation in (NAME, "sdpa", "eager")
        and not torch.is_autocast_enabled(backbone.device.type)
        and not any(map(_changed, backbone.model.modules()))
    )


def _changed(module: nn.Module) -> bool:
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def _origin(backbone: Backbone, size: int, writes: bool) -> str:
    model, here = backbone.model, environment(backbone.device)
    parts = (
        backbone.identity, fingerprint(model), backbone.dtype, repr(model), settings(model, str | bool | int | float),
        model.config.to_dict(), model.config._attn_implementation,
        {name: here[name] for name in ("code", "versions", "python", "platform", "machine", "device")},
        products(backbone.device), size, writes,
    )  # fmt: skip
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()
