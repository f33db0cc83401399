"""A run goes on from its last whole round, to the same bits, whatever became of the files; nothing is unpickled."""

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedreft_lib import load_run
from fedreft_lib.errors import DamageWarning, FedReFTError
from fedreft_lib.files import load_tensors, save_tensors
from fedreft_lib.runs import checkpoints
from tests.helpers.federations import finish, same, small

DAMAGE = {
    "cut off": lambda content: content[:-7],
    "emptied": lambda content: b"",
    "a bit of a number": lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
    "a bit of the header": lambda content: content[:9] + bytes([content[9] ^ 64]) + content[10:],
    "a pickle": lambda content: pickle.dumps({"X": [1.0]}),
    "another safetensors file": lambda content: safetensors.torch.save({"X": torch.zeros(4, 3)}),
    "not finite": lambda content: resealed(content, X=lambda X: X * torch.nan),
    "another shape": lambda content: resealed(content, X=lambda X: X[:, 1:]),
    "another version": lambda content: resealed(content, M=None),
}


def resealed(content, **changes):
    """A checkpoint with other tensors, its hash made to agree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(content)
        tensors, notes = load_tensors(path)
        for name, change in changes.items():
            tensors[name] = change(tensors[name]) if change else None
        save_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, notes)
        return path.read_bytes()


def damage(path, how):
    path.write_bytes(DAMAGE[how](path.read_bytes()))


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("last", [2, 3], ids=["stopped", "finished"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on_to_the_same_bits(kept, tmp_path, how, last):
    kept.copied(last, tmp_path)
    damage(tmp_path / "checkpoints" / f"round_000{last}.safetensors", how)
    with pytest.warns(DamageWarning, match=f"round_000{last}.safetensors .*: round {last - 1} is used") as told:
        back = load_run(tmp_path)
    assert "\n" not in str(told[0].message)
    assert back.manifest["round"] == back.history["round"].max() == last - 1
    with pytest.warns(DamageWarning):
        same(finish(kept.config, tmp_path), kept.whole)
    same(load_run(tmp_path), kept.whole)


def test_a_checkpoint_of_another_run_is_named_and_not_used(kept, tmp_path):
    config, whole = kept.config, kept.whole
    kept.copied(1, tmp_path / "a")
    finish(config.but(seed=1), tmp_path / "b")
    name = "checkpoints/round_0003.safetensors"
    shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    with pytest.warns(DamageWarning, match="round_0003.safetensors belongs to another run: round 1 is used"):
        assert load_run(tmp_path / "a").config == config
    with pytest.warns(DamageWarning, match="belongs to another run"):
        same(finish(config, tmp_path / "a"), whole)


@pytest.mark.parametrize("now", [[0], [5, 4]])
def test_a_run_that_goes_on_or_starts_again_while_it_is_read_is_read_as_it_is_now(kept, tmp_path, monkeypatch, now):
    """Both rounds that were there go between the look into the folder and the look into the files."""
    kept.copied(3, tmp_path)
    folder, read = tmp_path / "checkpoints", checkpoints.read

    def gone(path):
        monkeypatch.setattr(checkpoints, "read", read)
        for old, t in zip(sorted(folder.iterdir(), reverse=True), [*now, None], strict=False):
            old.rename(folder / checkpoints.name_of(t)) if t is not None else old.unlink()
        return read(path)

    monkeypatch.setattr(checkpoints, "read", gone)
    assert checkpoints.newest(tmp_path, kept.config).manifest["round"] == 3


def test_with_no_whole_checkpoint_left_a_run_is_refused_in_a_sentence_and_starts_again(kept, tmp_path):
    kept.copied(3, tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        damage(path, "cut off")
    with pytest.raises(FedReFTError, match="no whole round is left in") as error:
        load_run(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.warns(DamageWarning, match="no whole round is left .* starts again"):
        same(finish(kept.config, tmp_path), kept.whole)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "history.csv"])
@pytest.mark.parametrize("content", [None, b"", b'{"rank": ', b"\xff\xfe", b"[1]", b"null"])
def test_the_copies_beside_the_checkpoints_may_be_lost_and_come_back(kept, tmp_path, name, content):
    kept.copied(3, tmp_path)
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    same(load_run(tmp_path), kept.whole)
    same(finish(kept.config, tmp_path), kept.whole)
    assert (tmp_path / name).read_bytes() == before


def test_a_second_process_in_the_folder_is_refused(tmp_path):
    config = small(rounds=1)
    hold = f"with FileLock({str(tmp_path / '.lock')!r}):\n    print('held', flush=True)\n    input()"
    code = f"from filelock import FileLock\n{hold}"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FedReFTError, match="in use by another process"):
            finish(config, tmp_path)
    finally:
        holder.kill()  # no clean end: the lock goes with its holder
        holder.communicate()
    finish(config, tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FedReFTError, match="cannot be written to .*choose another folder") as error:
        finish(small(rounds=1), tmp_path / "file")
    assert "\n" not in str(error.value)


def limit_files_to(size):
    """A disk as full as a process can make it for itself: no file may grow beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.skipif(os.name != "posix", reason="needs limits of a process")
def test_a_disk_that_is_full_loses_no_round_and_is_one_sentence(kept, tmp_path):
    kept.copied(1, tmp_path)
    size = (tmp_path / "checkpoints" / "round_0001.safetensors").stat().st_size
    code = (
        "import sys\nfrom tests.runs.test_checkpoints import *\n"
        f"limit_files_to({size // 2})\n"
        f"try:\n    finish(small(rounds=3), {str(tmp_path)!r})\n"
        "except FedReFTError as error:\n    print(error)\n    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 7, done.stderr
    assert done.stdout.count("\n") == 1 and "round 1 stays" in done.stdout
    assert load_run(tmp_path).manifest["round"] == 1
    assert not list(tmp_path.rglob("*.tmp"))
    same(finish(kept.config, tmp_path), kept.whole)
