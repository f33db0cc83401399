"""One batch in a folder: a second is told who holds it, and a dead one holds nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedreft_lib.batch.exclusive import alone_in, left_over, mark
from fedreft_lib.errors import FedReFTError
from tests.torture.batch_kills import PROCESSES


def hold(folder: Path) -> None:
    with alone_in(folder):
        (folder / "held").touch()
        time.sleep(600)


def test_a_second_holder_is_refused_in_one_sentence_and_a_killed_first_holds_nothing(tmp_path):
    first = PROCESSES.Process(target=hold, args=(tmp_path,))
    first.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    sentence = rf"another batch is running in .* \(process {first.pid}, since 20"
    with pytest.raises(FedReFTError, match=sentence) as caught, alone_in(tmp_path):
        pass
    assert "\n" not in str(caught.value)
    first.kill()
    first.join()
    assert (tmp_path / "stamps/batch.lock").exists()  # what it left blocks nobody
    with alone_in(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / "stamps/batch.holder").read_text()
    with alone_in(tmp_path):  # and so does what is left when all went well
        pass


def test_other_folders_are_free(tmp_path):
    with alone_in(tmp_path / "quick"), alone_in(tmp_path / "smoke"):
        pass


def test_processes_of_an_earlier_batch_are_ended_and_those_of_other_folders_are_not(tmp_path):
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    folders = [tmp_path / "quick", tmp_path / "smoke"]
    mine, other = (subprocess.Popen(sleeps, env={**os.environ, **mark(folder)}) for folder in folders)
    try:
        while not (left_over(folders[0]) and left_over(folders[1])):  # until both are what they shall become
            time.sleep(0.01)
        with alone_in(folders[0]):
            assert mine.wait(timeout=10) == -9
            assert [process.pid for process in left_over(folders[1])] == [other.pid]
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()
