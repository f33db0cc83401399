"""What a file holds is asked for again without reading it again, and no change of it is missed."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from fedreft_lib.data import file_hashes
from fedreft_lib.data.file_hashes import file_hash
from tests.runs.test_identity import counted


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder; hashes of all files are remembered, not only of large old ones."""
    monkeypatch.setenv("FEDREFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "SMALL", 0)
    monkeypatch.setattr(file_hashes, "SETTLED", 0.0)
    file_hashes._remembered.clear()
    yield tmp_path
    file_hashes._remembered.clear()


def in_place(path: Path, text: str) -> None:
    """The same size, the same inode and the same time, where the text is as long."""
    before = path.stat()
    with path.open("r+") as file:
        file.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("process", ["same", "new"])
def test_a_change_in_place_with_the_old_time_set_again_is_noticed(place, process):
    path = place / "weights"
    path.write_text("one")
    found = [file_hash(path), file_hash(path)]
    time.sleep(0.02)  # a tick of the file system's clock
    in_place(path, "two")
    file_hashes._remembered.clear() if process == "new" else None
    assert found[0] == found[1] != file_hash(path) == file_hashes.read_hash(path)


@pytest.mark.parametrize("process", ["same", "new"])
def test_a_large_file_is_read_once(place, monkeypatch, process):
    path = place / "weights"
    path.write_text("one")
    digest = file_hash(path)
    reads = counted(monkeypatch, file_hashes, "read_hash")
    file_hashes._remembered.clear() if process == "new" else None
    assert file_hash(path) == digest and reads == []
    shutil.copy2(path, place / "copy")
    assert file_hash(place / "copy") == digest and len(reads) == 1


def test_small_files_and_those_that_changed_just_now_are_read_each_time(place, monkeypatch):
    path = place / "weights"
    path.write_text("one")
    reads = counted(monkeypatch, file_hashes, "read_hash")
    for name, value in (("SMALL", 3), ("SETTLED", 60.0)):
        with monkeypatch.context() as patch:
            patch.setattr(file_hashes, name, value)
            file_hash(path)
            file_hash(path)
    assert len(reads) == 4 and not (place / "cache").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000, '{"file": 1}', '{"status": 3}'])
def test_a_damaged_memory_is_passed_over(place, text):
    path = place / "weights"
    path.write_text("one")
    digest = file_hash(path)
    (memory,) = (place / "cache/file_hashes").iterdir()
    good = json.loads(memory.read_text())
    for damaged in (text, json.dumps({**good, "sha256": "short"}), json.dumps({**good, "file": "another"})):
        memory.write_text(damaged)
        file_hashes._remembered.clear()
        assert file_hash(path) == digest


def test_a_cache_that_cannot_be_written_is_no_error(place, monkeypatch):
    (place / "file").write_text("in the way")
    monkeypatch.setenv("FEDREFT_CACHE", str(place / "file"))
    (place / "weights").write_text("one")
    assert file_hash(place / "weights") == file_hash(place / "weights")
    with pytest.raises(FileNotFoundError):
        file_hash(place / "gone")
