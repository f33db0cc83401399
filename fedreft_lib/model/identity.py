"""The identity of the weights, tokenizer and settings that a backbone's name means now, without loading them.

tiny-llama, tiny-roberta    the name: the code defines the model, and has its own hash
packaged                    the SHA-256 of the package and the version of its converter
a folder                    names and content of the files that `from_pretrained` may read
a name on the hub           the commit in the hub's cache on this machine; the hub is not asked
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.downloads import ASSETS
from ..data.file_hashes import file_hash
from ..errors import FedReFTError
from .weights import converter_version

TINY = ("tiny-llama", "tiny-roberta")
UNKNOWN = "hub"  # for a hub model that is not on this machine
# Endings of weights, configurations, tokenizers and templates; not README.md, nor the weights of other frameworks.
ENDINGS = (
    ".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".tiktoken", ".py", ".spm", ".codes", ".vocab",
)  # fmt: skip


def backbone_identity(name: str, base: Path = Path()) -> str:
    """The identity of `name`. base: the folder that relative paths start from.

    Raises FedReFTError for a folder that does not exist or cannot be read.
    """
    if name in TINY:
        return name
    if name in ASSETS:
        return f"package {ASSETS[name].sha256[:16]} {converter_version()[:16]}"
    if folder := folder_of(name, base):
        try:
            return f"folder {_content(folder)}"
        except OSError as error:
            raise FedReFTError(f"The folder {name} cannot be read ({error}); make its files readable.") from error
    return _on_the_hub(name)


def bytes_of(name: str) -> int | None:
    """Bytes of the files of `name`; None for a name on the hub."""
    if name in TINY:
        return 0
    if name in ASSETS:
        return ASSETS[name].size
    folder = folder_of(name)
    return None if folder is None else sum(path.stat().st_size for path in _files(folder))


def folder_of(name: str, base: Path = Path()) -> Path | None:
    """The folder that a backbone's name means; None where it means none.

    Raises FedReFTError for a path to a folder that does not exist.
    """
    try:
        folder = base / Path(name).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError) as error:  # the name is too long, or the home folder of "~user" is unknown
        raise FedReFTError(f"There can be no folder {name[:80]} ({error}); name a folder or a model.") from None
    if name.startswith((".", "/", "~")) or "\\" in name:
        raise FedReFTError(f"There is no folder {name}; name an existing folder or a model.")
    return None


def may_be_same(one: str, other: str) -> bool:
    """Whether two identities are equal, or both are on the hub and one is unknown."""
    on_hub = one.startswith(UNKNOWN) and other.startswith(UNKNOWN)
    return one == other or (on_hub and UNKNOWN in (one, other))


def _content(folder: Path) -> str:
    """16 hex digits for the files that are read, and for the base model where the folder holds an adapter."""
    found: list[Any] = [[path.relative_to(folder).as_posix(), file_hash(path)] for path in _files(folder)]
    base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
    if isinstance(base, str) and base:  # transformers loads it instead of the folder's own weights
        there = folder_of(base)
        adapts = there is not None and (there / "adapter_config.json").is_file()  # no adapter has an adapter as base
        found.append(base if adapts else backbone_identity(base))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    found = {path for path in folder.iterdir() if path.suffix.lower() in ENDINGS}
    found |= set(folder.glob("additional_chat_templates/*"))
    named = _json(folder / "config.json").get("transformers_weights")  # replaces the usual names
    if isinstance(named, str) and named:
        found.add(folder / named)
    indices = {path for path in [*folder.glob("*.index.json"), *found] if path.name.endswith(".index.json")}
    found |= {path.parent / name for path in indices for name in _shards(path)}
    return sorted(path for path in found if path.is_file())


def _shards(index: Path) -> Iterator[str]:
    """The files of the weights that an index names, in any subfolder."""
    weights = _json(index).get("weight_map")
    return filter(lambda name: isinstance(name, str), weights.values()) if isinstance(weights, dict) else iter(())


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none: loading the model then raises the error."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _on_the_hub(name: str) -> str:
    from huggingface_hub import try_to_load_from_cache  # here: without the hub nobody waits for this import
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # loading the model raises the error
        return UNKNOWN
    return f"{UNKNOWN} {Path(config).parent.name}" if isinstance(config, str) else UNKNOWN
