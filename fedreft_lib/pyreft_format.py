"""States to and from the folders that pyreft writes (`ReftModel.save`, `ReftModel.load`, version 0.1.0).

    config.json                            which sites there are, as pyvene's `representations`
    intkey_layer_L_comp_block_output_unit_pos_nunit_1#G.bin   one file a site; G counts a layer's groups

pyreft keeps R as `rotate_layer` (d, r), our R^T, and does not check that it is orthonormal when it loads. LoReFT goes
both ways. DiReFT's files do too, but pyreft 0.1.0 itself cannot rebuild a DiReFT model from a folder (its class wants
an argument that the folder does not hold), so those are loaded onto a model that has been made first.
"""

import json
import pickle
from pathlib import Path

import torch

from .errors import FedReFTError
from .interventions import Intervention, State
from .sites import Sites

# pyreft's tensor names for ours, and whether they are transposed.
FILES = {
    "loreft": {"R": ("rotate_layer", True), "W": ("weight", False), "b": ("bias", False)},
    "direft": {
        "R": ("proj_layer.weight", False),
        "W": ("learned_source.weight", False),
        "b": ("learned_source.bias", False),
    },
}


def save_pyreft(folder: str | Path, state: State, sites: Sites, intervention: Intervention) -> None:
    """Write a state so that `pyreft.ReftModel.load(folder, model)` reads it. Raises FedReFTError for other members."""
    names = _names(intervention)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rank, d = state["R"].shape[-2:]
    for key, site in _keys(sites).items():
        tensors = {
            theirs: (state[ours][site].T if turned else state[ours][site]).contiguous().clone()
            for ours, (theirs, turned) in names.items()
        }
        if intervention.name == "direft":  # its class keeps these two as buffers
            tensors |= {"embed_dim": torch.tensor(d), "interchange_dim": torch.tensor(d)}
        torch.save(tensors, folder / f"intkey_{key}.bin")
    kind = f"<class 'pyreft.interventions.{intervention.pyreft_class}'>"
    rest = [None] * 9  # the fields of pyvene's RepresentationConfig that ReFT does not use
    config = {
        "mode": "parallel",
        "representations": [
            [layer, "block_output", "pos", 1, rank, *rest] for _ in sites.groups for layer in sites.layers
        ],
        "intervention_types": [kind] * len(sites),
        "intervention_dimensions": [d] * len(sites),
        "intervention_constant_sources": [True] * len(sites),
        "sorted_keys": list(_keys(sites)),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def load_pyreft(folder: str | Path, sites: Sites, intervention: Intervention) -> State:
    """Read a folder that pyreft (or `save_pyreft`) wrote, for the same sites. Never runs pickled code.

    Raises FedReFTError when a site's file is missing, damaged, or of another shape.
    """
    folder, names = Path(folder), _names(intervention)
    parts: dict[str, list] = {ours: [] for ours in names}
    for key in _keys(sites):
        path = folder / f"intkey_{key}.bin"
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            for ours, (theirs, turned) in names.items():
                tensor = tensors[theirs].float()
                parts[ours].append(tensor.T if turned else tensor)
        except (OSError, RuntimeError, KeyError, pickle.UnpicklingError, AttributeError, EOFError) as error:
            raise FedReFTError(f"{path} is not a {intervention.name} site that pyreft wrote: {error}") from None
    try:
        return {ours: torch.stack(tensors) for ours, tensors in parts.items()}
    except RuntimeError as error:
        raise FedReFTError(f"the sites in {folder} do not have one shape: {error}") from None


def _names(intervention: Intervention) -> dict[str, tuple[str, bool]]:
    if intervention.name not in FILES:
        raise FedReFTError(f"pyreft's format is supported for {', '.join(FILES)}, not for {intervention.name}")
    return FILES[intervention.name]


def _keys(sites: Sites) -> dict[str, int]:
    """pyvene's key of each site, in pyreft's order, and the site's place in the stacked tensors."""
    return {
        f"layer_{layer}_comp_block_output_unit_pos_nunit_1#{g}": sites.index(layer, group)
        for g, group in enumerate(sites.groups)
        for layer in sites.layers
    }
