"""What results depend on besides the run's own parameters: code, versions, machine, number of threads."""

import functools
import hashlib
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "numpy")
# Entries that the bits of a repetition also depend on. Where they differ, a run continues, with a warning.
BITS = ("device", "threads", "versions", "machine")
PRECISIONS = ("fp32_precision", "cuda.matmul.fp32_precision", "mkldnn.matmul.fp32_precision")  # of torch.backends
# The code that computes a run's numbers. A change in any other part of the library leaves finished runs valid.
COMPUTES = ("seeds.py", "config", "core", "data", "model", "methods", "federation")


@functools.cache  # this process runs one version, even if the files are edited meanwhile
def code_fingerprint() -> str:
    """A hash of the library's source and packaged items that a run's numbers depend on; 16 hex digits."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*here.rglob("*.py"), *here.rglob("*.jsonl")]):
        if path.relative_to(here).parts[0] in COMPUTES:
            digest.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache  # computed once for each process
def _fixed() -> tuple[tuple[str, str], ...]:
    there = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    return tuple({**there, "machine": platform.machine(), "commit": commit(Path(__file__).parent)}.items())


def environment(device: torch.device | str = "cpu") -> dict:
    """The entries of a manifest about code, versions and machine. `commit` ends in "-dirty" for a changed working tree.

    deterministic: whether a repetition with the same threads gives the same bits. On a CPU it does; on a GPU as far as
    torch has deterministic algorithms, which `load_backbone` turns on there.
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


def products(device: torch.device) -> str:
    """What the bits of matrix products depend on, besides versions and threads: the processor, since machines may share
    a cache folder, and how exactly torch is set to multiply float32.
    """
    found = [_setting(name) for name in PRECISIONS]
    with suppress(RuntimeError):  # of torch, where one of these was set
        found.append(torch.get_float32_matmul_precision())
    if device.type == "cuda":
        return f"{found} {torch.cuda.get_device_name(device)}"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch versions do not know
    return f"{found} {torch.backends.cpu.get_cpu_capability()} {sorted(capabilities.items())}"


def _setting(name: str) -> str | None:
    """A setting of torch.backends; None where this torch has none of this name."""
    try:
        return attrgetter(name)(torch.backends)
    except AttributeError:
        return None


def differences(manifest: dict) -> list[str]:
    """How a run's manifest differs from here and now, in words: code, packages, Python, machine; not the device."""
    here, found = environment(), []
    if manifest.get("code") != here["code"]:
        found.append(f"other library code (commit {manifest.get('commit') or 'unknown'})")
    theirs = {**manifest.get("versions", {}), "python": manifest.get("python"), "machine": manifest.get("machine")}
    ours = {**here["versions"], "python": here["python"], "machine": here["machine"]}
    other = [name for name in ours if theirs.get(name) not in (None, ours[name])]
    return found + [f"{name} {theirs[name]} (here {ours[name]})" for name in other]


def commit(folder: Path) -> str:
    """The commit of the working tree with `folder`, with "-dirty" where it was changed; "" where there is none."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
