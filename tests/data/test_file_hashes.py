"""What a file holds is asked for again without reading it again, and no change of it is missed."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from fedreft_lib.data import file_hashes
from fedreft_lib.data.file_hashes import file_hash
from tests.helpers.federations import counted


def in_place(path: Path, text: str) -> None:
    """The same size, the same inode and the same time, where the text is as long."""
    before = path.stat()
    with path.open("r+") as file:
        file.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("process", ["same", "new"])
def test_a_change_in_place_with_the_old_time_set_again_is_noticed(all_hashes_remembered, process):
    path = all_hashes_remembered / "weights"
    path.write_text("one")
    found = [file_hash(path), file_hash(path)]
    time.sleep(0.02)  # a tick of the file system's clock
    in_place(path, "two")
    file_hashes._remembered.clear() if process == "new" else None
    assert found[0] == found[1] != file_hash(path) == file_hashes.read_hash(path)


@pytest.mark.parametrize("process", ["same", "new"])
def test_a_large_file_is_read_once(all_hashes_remembered, monkeypatch, process):
    path = all_hashes_remembered / "weights"
    path.write_text("one")
    digest = file_hash(path)
    reads = counted(monkeypatch, file_hashes, "read_hash")
    file_hashes._remembered.clear() if process == "new" else None
    assert file_hash(path) == digest and reads == []
    shutil.copy2(path, all_hashes_remembered / "copy")
    assert file_hash(all_hashes_remembered / "copy") == digest and len(reads) == 1


def test_small_files_and_those_that_changed_just_now_are_read_each_time(all_hashes_remembered, monkeypatch):
    path = all_hashes_remembered / "weights"
    path.write_text("one")
    reads = counted(monkeypatch, file_hashes, "read_hash")
    for name, value in (("SMALL", 3), ("SETTLED", 60.0)):
        with monkeypatch.context() as patch:
            patch.setattr(file_hashes, name, value)
            file_hash(path)
            file_hash(path)
    assert len(reads) == 4 and not (all_hashes_remembered / "cache").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000, '{"file": 1}', '{"status": 3}'])
def test_a_damaged_memory_is_passed_over(all_hashes_remembered, text):
    path = all_hashes_remembered / "weights"
    path.write_text("one")
    digest = file_hash(path)
    (memory,) = (all_hashes_remembered / "cache/file_hashes").iterdir()
    good = json.loads(memory.read_text())
    for damaged in (text, json.dumps({**good, "sha256": "short"}), json.dumps({**good, "file": "another"})):
        memory.write_text(damaged)
        file_hashes._remembered.clear()
        assert file_hash(path) == digest


def test_a_cache_that_cannot_be_written_is_no_error(all_hashes_remembered, monkeypatch):
    (all_hashes_remembered / "file").write_text("in the way")
    monkeypatch.setenv("FEDREFT_CACHE", str(all_hashes_remembered / "file"))
    (all_hashes_remembered / "weights").write_text("one")
    assert file_hash(all_hashes_remembered / "weights") == file_hash(all_hashes_remembered / "weights")
    with pytest.raises(FileNotFoundError):
        file_hash(all_hashes_remembered / "gone")
