"""One backbone a process: loaded once, and shared by all its federations."""

from dataclasses import replace

from ..errors import FedReFTError
from .backbone import Backbone, load_backbone
from .identity import UNKNOWN, backbone_identity

_shared: dict[tuple[str, str, str], Backbone] = {}  # the last backbone only
loaded: list[str] = []  # the backbones that this process has loaded, in order


def shared_backbone(name: str, dtype: str, device: str) -> Backbone:
    """`load_backbone`, remembered until its files change, so that a process loads it once.

    Raises FedReFTError where the files change while they are loaded.
    """
    key, before = (name, dtype, device), backbone_identity(name)
    if key not in _shared or _shared[key].identity != before:
        _shared.clear()
        backbone = load_backbone(name, dtype=dtype, device=device)
        loaded.append(name)
        identity = backbone_identity(name)
        if identity != before and not before.startswith(UNKNOWN):  # the hub may have sent another commit
            raise FedReFTError(f"The files of {name} changed while they were loaded; try again when they are whole.")
        _shared[key] = replace(backbone, identity=identity)
    return _shared[key]
