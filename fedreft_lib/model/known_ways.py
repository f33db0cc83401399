"""The result of a trial (`agreement`), kept for the next process: a trial takes as long as two training steps.

Beside the hidden states, one small file for each model, size and machine. A file's name is a hash of everything that a
trial depends on: the backbone's files, its weights as they are now, its modules, config, dtype and device, the code of
the library, and versions. Only `shared_backbone` gives a backbone that is known by its files; for any other, each
process makes its own trials. It also does where a slower way was found: the reason may have been a lack of memory.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

import torch

from ..environment import environment, processor
from ..files import keep_text, kept_text
from .agreement import layouts
from .backbone import Backbone, fingerprint
from .fast.hidden_files import folder
from .identity import UNKNOWN
from .ways import Ways


def tried_once(backbone: Backbone, size: int, writes: bool, trial: Callable[[], Ways]) -> Ways:
    """The result of a trial with texts of `size` tokens, or that of an earlier one, maybe in another process."""
    if backbone.identity in ("", UNKNOWN):
        return trial()
    origin = _origin(backbone, size, writes)
    path = folder() / f"{origin}.ways.json"
    if (known := kept_text(path, origin)) is not None:
        return Ways(**json.loads(known))
    ways = trial()
    if ways == Ways(layouts(backbone, size)[0]):
        keep_text(path, origin, json.dumps(asdict(ways)))
    return ways


def _origin(backbone: Backbone, size: int, writes: bool) -> str:
    config, here = backbone.model.config, environment(backbone.device)
    parts = (
        backbone.identity, fingerprint(backbone.model), backbone.dtype, repr(backbone.model),
        config.to_json_string(use_diff=False), config._attn_implementation,
        {name: here[name] for name in ("code", "versions", "python", "platform", "machine", "device")},
        processor(backbone.device), torch.get_float32_matmul_precision(), size, writes,
    )  # fmt: skip
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()
