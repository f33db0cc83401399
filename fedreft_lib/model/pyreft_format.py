"""States to and from the folders that pyreft writes (`ReftModel.save`, `ReftModel.load`, version 0.1.0).

    config.json                                               the sites, as pyvene's `representations`
    intkey_layer_L_comp_block_output_unit_pos_nunit_1#G.bin   one file per site; G counts a layer's groups

pyreft stores R as `rotate_layer` (d, r), our R^T, and does not check that it is orthonormal. LoReFT converts both ways.
So do DiReFT's files, but pyreft 0.1.0 itself cannot rebuild a DiReFT model from a folder (its class needs an argument
that the folder does not hold). Make such a model first, then load the files onto it.

A folder does not contain the positions of its groups ("f7+l7" and "f1+l1" look alike, and so do tied groups and a
prefix only), the activation function or the dropout. Whoever loads it has to know them.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.interventions import Intervention
from ..core.sites import Sites
from ..core.state import State, is_finite
from ..errors import FedReFTError
from ..files import write_text

# pyreft's tensor names for ours, and whether they are transposed.
FILES = {
    "loreft": {"R": ("rotate_layer", True), "W": ("weight", False), "b": ("bias", False)},
    "direft": {
        "R": ("proj_layer.weight", False),
        "W": ("learned_source.weight", False),
        "b": ("learned_source.bias", False),
    },
}
UNUSED = {"loreft": set(), "direft": {"embed_dim", "interchange_dim", "proj_layer.bias"}}  # tensors that may be there
WHERE = ["block_output", "pos", 1]  # component, unit and number of units of every site
REST = [None] * 9  # the fields of pyvene's RepresentationConfig that ReFT does not use
OF_THE_MODEL = "pytorch_model.bin"  # trained tensors outside the interventions, for instance a head's


def save_pyreft(folder: str | Path, state: State, sites: Sites, intervention: Intervention) -> None:
    """Write a state so that `pyreft.ReftModel.load(folder, model)` reads it.

    It first removes earlier files of pyreft or of this function, and nothing else. config.json is written last, so a
    partly written folder cannot be loaded. Raises FedReFTError for other interventions, for a state that does not fit
    the sites, for a folder that holds another model, and where the folder cannot be written to.
    """
    names, folder = _names(intervention), Path(folder)
    _check_state(state, sites, intervention)
    rank, d = state["R"].shape[-2:]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _cleared(folder)
        for key, site in _keys(sites).items():
            tensors = {
                theirs: (state[ours][site].T if turned else state[ours][site]).contiguous().clone()
                for ours, (theirs, turned) in names.items()
            }
            if intervention.name == "direft":  # its class keeps these two as buffers
                tensors |= {"embed_dim": torch.tensor(d), "interchange_dim": torch.tensor(d)}
            torch.save(tensors, folder / _file(key))
        config = {
            "mode": "parallel",
            "representations": [[layer, *WHERE, rank, *REST] for _ in sites.groups for layer in sites.layers],
            "intervention_types": [_type(intervention)] * len(sites),
            "intervention_dimensions": [d] * len(sites),
            "intervention_constant_sources": [True] * len(sites),
            "sorted_keys": list(_keys(sites)),
        }
        write_text(folder / "config.json", json.dumps(config, indent=1))
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        raise FedReFTError(f"{folder} cannot be written to ({_one_line(error)}): fix that or choose another") from None


def load_pyreft(folder: str | Path, sites: Sites, intervention: Intervention) -> State:
    """Read a folder that pyreft (or `save_pyreft`) wrote, for the same sites. Never runs pickled code.

    Raises FedReFTError where config.json or the files have other sites or another intervention than asked for, do not
    fit each other, or where a file is missing, damaged or left over.
    """
    folder, names = Path(folder), _names(intervention)
    config = _config(folder)
    _check_sites(folder, config, sites, intervention)
    keys = _keys(sites)
    _check_files(folder, {_file(key) for key in keys})
    parts = [_site(folder / _file(key), intervention) for key in keys]
    shapes = {tuple((name, tuple(part[name].shape)) for name in names) for part in parts}
    if len(shapes) > 1:
        raise FedReFTError(f"the sites in {folder} do not have one shape: {sorted(shapes)}")
    state = {name: torch.stack([part[name] for part in parts]) for name in names}
    if state["R"].dim() != 3 or {n: tuple(t.shape) for n, t in state.items()} != intervention.shapes(*state["R"].shape):
        raise FedReFTError(f"the tensors in {folder} do not fit each other: {dict(min(shapes))} for each site")
    rank, d = state["R"].shape[1:]
    for said, what, found in (
        ([each[4] for each in config["representations"]], "low_rank_dimension", rank),
        (config.get("intervention_dimensions") or [], "intervention_dimensions", d),
    ):
        if wrong := [value for value in said if value not in (None, found)]:
            raise FedReFTError(f"{folder / 'config.json'} says {what} {wrong[0]!r} of a site whose file has {found}")
    return state


def _site(path: Path, intervention: Intervention) -> State:
    """The tensors of one site with our names; nothing checks yet that they fit each other."""
    names = _names(intervention)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many, depending on the damage
        raise FedReFTError(f"{path} cannot be read as a site that pyreft wrote: {_one_line(error)}") from None
    theirs = {each for each, _ in names.values()}
    if not isinstance(tensors, dict) or not theirs <= set(tensors) <= theirs | UNUSED[intervention.name]:
        held = sorted(map(str, tensors)) if isinstance(tensors, dict) else type(tensors).__name__
        raise FedReFTError(f"{path} is not a {intervention.name} site that pyreft wrote: it holds {held}")
    for name in theirs:
        tensor = tensors[name]
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point() and is_finite(tensor)):
            raise FedReFTError(f"{path} is not a site that pyreft wrote: {name} has no finite numbers")
    found = {ours: (tensors[each].float(), turned) for ours, (each, turned) in names.items()}
    return {ours: tensor.T if turned else tensor for ours, (tensor, turned) in found.items()}


def _config(folder: Path) -> dict[str, Any]:
    """The content of config.json. Raises FedReFTError where it or its representations cannot be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FedReFTError(
            f"{path} cannot be read ({_one_line(error)}): give a folder that ReftModel.save or save_pyreft wrote"
        ) from None
    if not _is_pyvenes(config):
        raise FedReFTError(f"{path} is not of pyvene: give a folder that ReftModel.save or save_pyreft wrote")
    return config


def _is_pyvenes(config: Any) -> bool:
    found = config.get("representations") if isinstance(config, dict) else None
    return isinstance(found, list) and all(isinstance(each, list) and len(each) >= 5 for each in found)


def _check_sites(folder: Path, config: dict[str, Any], sites: Sites, intervention: Intervention) -> None:
    said, path = config["representations"], folder / "config.json"
    odd = [each for each in said if each[1:4] != WHERE or any(field is not None for field in each[5:])]
    if odd or config.get("mode", "parallel") != "parallel":
        what = f"the site {odd[0]}" if odd else f"the mode {config['mode']!r}"
        raise FedReFTError(f"{path} has {what}, and what can be read are sites at {WHERE} of blocks, in parallel")
    found = Counter(str(each[0]) for each in said)
    asked = Counter(str(layer) for layer in sites.layers * len(sites.groups))
    if found != asked:
        raise FedReFTError(f"{folder} holds {_listed(found)}, and {_listed(asked)} are asked for: give its own sites")
    types = config.get("intervention_types")
    if types != [_type(intervention)] * len(said):
        others = sorted({str(each) for each in types} - {_type(intervention)}) if isinstance(types, list) else types
        raise FedReFTError(f"{path} is of {others}, and {intervention.name} is {_type(intervention)} for each site")


def _check_files(folder: Path, asked: set[str]) -> None:
    there = {path.name for path in folder.glob("intkey_*.bin")}
    if asked - there:
        raise FedReFTError(f"{folder} lacks {min(asked - there)}, which its config.json names")
    if there - asked:
        raise FedReFTError(f"{folder} has {min(there - asked)}, which its config.json does not name: whose is it?")
    path = folder / OF_THE_MODEL
    if path.exists():
        try:
            others = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise FedReFTError(f"{path} cannot be read: {_one_line(error)}") from None
        if not isinstance(others, dict) or others:
            raise FedReFTError(f"{path} holds trained tensors of the model itself, which no state has: move it away")


def _check_state(state: State, sites: Sites, intervention: Intervention) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    rank, d = found["R"][-2:] if len(found.get("R", ())) == 3 else (0, 0)
    expected = intervention.shapes(len(sites), rank, d)
    if found != expected:
        raise FedReFTError(f"a state of {list(expected)} for {len(sites)} sites can be saved for pyreft, got {found}")


def _cleared(folder: Path) -> None:
    """Removes the files of an earlier save. Raises FedReFTError for a folder that holds another model."""
    config = folder / "config.json"
    if config.exists():
        try:
            ours = _is_pyvenes(json.loads(config.read_text(encoding="utf-8")))
        except ValueError:
            ours = False
        if not ours:
            raise FedReFTError(f"{config} is not of pyvene: choose another folder")
    if (folder / OF_THE_MODEL).exists():
        raise FedReFTError(f"{folder / OF_THE_MODEL} holds tensors of another model: choose another folder")
    config.unlink(missing_ok=True)
    for path in folder.glob("intkey_*.bin"):
        path.unlink()


def _listed(sites: Counter) -> str:
    return "sites at the layers " + ", ".join(f"{layer} ({n} x)" if n > 1 else layer for layer, n in sites.items())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _type(intervention: Intervention) -> str:
    return f"<class 'pyreft.interventions.{intervention.pyreft_class}'>"


def _file(key: str) -> str:
    return f"intkey_{key}.bin"


def _names(intervention: Intervention) -> dict[str, tuple[str, bool]]:
    if intervention.name not in FILES:
        raise FedReFTError(f"pyreft's format is supported for {', '.join(FILES)}, not for {intervention.name}")
    return FILES[intervention.name]


def _keys(sites: Sites) -> dict[str, int]:
    """pyvene's key of each site, in pyreft's order, and the site's index in the stacked tensors."""
    return {
        f"layer_{layer}_comp_block_output_unit_pos_nunit_1#{g}": sites.index(layer, group)
        for g, group in enumerate(sites.groups)
        for layer in sites.layers
    }
