"""A manifest says what a result depends on, and one seed gives the same bits in every process."""

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from fedreft_lib import run
from fedreft_lib.environment import commit, differences, environment, products
from fedreft_lib.federation.assembly import _build
from tests.helpers.federations import small


def digest(states):
    return hashlib.sha256(states.numpy().tobytes()).hexdigest()


def test_another_process_reads_the_hidden_states_of_this_one_and_one_seed_gives_it_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDREFT_HIDDEN_STATES", str(tmp_path))
    _build.cache_clear()
    done = run(small(mixing="adaptive", rounds=2), progress=False)
    _build.cache_clear()
    written = {path: path.stat().st_ino for path in tmp_path.glob("*.safetensors")}
    threads = torch.get_num_threads()
    code = (
        "import torch\nfrom fedreft_lib import SteeredModel, run\nfrom tests.test_environment import digest, small\n"
        f"torch.set_num_threads({threads})\nSteeredModel.hidden_below = None\n"  # it shall not be called
        "print(digest(run(small(mixing='adaptive', rounds=2), progress=False).states))"
    )
    root = Path(__file__).parents[1]
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert other.stdout.strip() == digest(done.states)
    assert written and {path: path.stat().st_ino for path in tmp_path.glob("*.safetensors")} == written
    assert done.manifest["threads"] == threads and done.manifest["deterministic"] == "yes"


def test_the_commit_says_whether_the_working_tree_was_changed(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert commit(tmp_path) == ""
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    clean = commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"


def test_every_way_to_set_how_exactly_float32_is_multiplied_is_told(monkeypatch):
    cpu = torch.device("cpu")
    plain = products(cpu)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
        assert products(cpu) != plain

    def refused():
        raise RuntimeError("mix of the legacy and new APIs")

    with monkeypatch.context() as patch:  # as torch does after one of its newer settings was set
        patch.setattr(torch, "get_float32_matmul_precision", refused)
        patch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
        assert "tf32" in products(cpu)
    assert products(cpu) == plain


def test_what_differs_is_named_and_what_is_not_known_is_not_made_up():
    here = environment()
    assert differences(here) == []
    versions = {**here["versions"], "torch": "0.1"}
    other = {**here, "code": "another", "commit": "abc", "python": "2.7", "versions": versions}
    code, *rest = differences(other)
    assert code == "other library code (commit abc)"
    assert sorted(text.split(" (")[0] for text in rest) == ["python 2.7", "torch 0.1"]
    assert differences({"code": here["code"]}) == []


def test_a_gpu_is_not_promised_to_repeat_itself():
    assert environment("cuda")["deterministic"] == "as far as torch allows"
