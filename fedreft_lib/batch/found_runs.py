"""Finished runs of a profile, brought to where the notebooks in work/ look for theirs.

    outputs/PROFILE/KIND/RUN       made by `reproduce`
    outputs/interactive/KIND/RUN   made by a notebook that is run by hand; a run is named after its parameters

A run that is brought is read and not computed, if code, data and backbone are still the same (`runs.store`). Where a
notebook has other parameters, its runs have other names and are computed beside these.

Two simpler ways were left out. With output_dir = "../outputs/PROFILE" in the copies, nothing need be brought; but then
results.csv and the report of the profile would show what somebody tried, and tables and pictures of the batch would be
overwritten. With a search path in the store, notebooks that read whole folders (09, parts of 06) would see nothing.

The large files are linked, not copied: no file of tensors is ever changed in place (`files.save_tensors`).
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

LINKED = ".safetensors"
PATIENCE = 60.0  # seconds that one process waits for another that brings runs


def bring(source: Path, target: Path) -> int:
    """Brings the finished runs of a profile's folder; returns how many of them are in `target` now.

    A run that is there stays, unless this library's code made the one in `source` and another made the one there.
    """
    runs = list(_finished(source))
    if not runs:
        return 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target / ".bring.lock", timeout=PATIENCE):  # JupyterLab may be started twice
            return _bring(runs, source, target)
    except OSError:  # nothing can be written, or the other one has stopped: the notebooks compute their runs
        return 0


def _bring(runs: list[tuple[Path, str]], source: Path, target: Path) -> int:
    found = 0
    coming = target / ".coming"  # a run gets its place when it is complete
    for run, code in runs:
        place = target / run.relative_to(source)
        if place.exists() and not _is_newer(code, place):
            found += 1
            continue
        shutil.rmtree(coming, ignore_errors=True)
        try:
            shutil.copytree(run, coming, copy_function=_copy, ignore=shutil.ignore_patterns(".*", "*.tmp"))
        except OSError:  # a batch has moved it meanwhile, or the disk is full: the notebook computes this run
            shutil.rmtree(coming, ignore_errors=True)
            continue
        if place.exists():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(coming, place)
        found += 1
    return found


def _finished(folder: Path) -> Iterator[tuple[Path, str]]:
    """The folders of finished runs, and the fingerprint of the code that made each."""
    for path in sorted(folder.glob("*/*/manifest.json")):
        manifest = _manifest(path.parent)
        if path.parts[-3] != "earlier" and manifest.get("round", -1) == manifest.get("rounds"):
            yield path.parent, manifest.get("code", "")


def _is_newer(code: str, place: Path) -> bool:
    from ..environment import code_fingerprint  # loads torch

    return _manifest(place).get("code") not in (None, code) and code == code_fingerprint()


def _manifest(run: Path) -> dict:
    """A run's manifest; {} where it is missing or damaged."""
    try:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _copy(file: str, copy: str) -> str:
    if file.endswith(LINKED):
        with suppress(OSError):  # a disk without links
            os.link(file, copy)
            return copy
    return shutil.copy2(file, copy)
