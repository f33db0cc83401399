"""What results depend on besides the run's own parameters: code, versions, machine, the way threads add up."""

import functools
import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "numpy")
# What a repetition's bits depend on besides what makes a run start again.
BITS = ("device", "threads", "versions", "machine")
# What a run's numbers are computed by. A change in any other package leaves finished runs valid.
COMPUTES = ("seeds.py", "config", "core", "data", "model", "methods", "federation")


@functools.cache  # of what this process runs; the files may be edited meanwhile
def code_fingerprint() -> str:
    """A hash of the library's own source and packaged items, as far as a run's numbers depend on them."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*here.rglob("*.py"), *here.rglob("*.jsonl")]):
        if path.relative_to(here).parts[0] in COMPUTES:
            digest.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache  # neither changes while a process lives
def _fixed() -> tuple[tuple[str, str], ...]:
    there = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    return tuple({**there, "machine": platform.machine(), "commit": commit(Path(__file__).parent)}.items())


def environment(device: torch.device | str = "cpu") -> dict:
    """What a manifest says of where it was made. `commit` ends in "-dirty" where the working tree was changed.

    deterministic: whether a repetition gives the same bits, given the same threads: on a CPU it does; on a GPU as far
    as torch's deterministic algorithms, which `load_backbone` asks for there, go.
    """
    kind = torch.device(device).type
    return {
        **dict(_fixed()),
        "code": code_fingerprint(),
        "versions": {name: version(name) for name in PACKAGES},
        "device": str(device),
        "threads": torch.get_num_threads(),
        "deterministic": "yes" if kind == "cpu" else "as far as torch allows",
    }


def differences(manifest: dict) -> list[str]:
    """In what a run's manifest differs from here and now, in words; of the code and the stack, not of the device."""
    here, found = environment(), []
    if manifest.get("code") != here["code"]:
        found.append(f"other library code (commit {manifest.get('commit') or 'unknown'})")
    theirs = {**manifest.get("versions", {}), "python": manifest.get("python"), "machine": manifest.get("machine")}
    ours = {**here["versions"], "python": here["python"], "machine": here["machine"]}
    other = [name for name in ours if theirs.get(name) not in (None, ours[name])]
    return found + [f"{name} {theirs[name]} (here {ours[name]})" for name in other]


def commit(folder: Path) -> str:
    """The commit of the working tree that `folder` is in, "-dirty" where it was changed; "" where there is none."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
