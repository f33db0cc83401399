"""A deployment on loopback addresses, with TLS and keys: the numbers of one process, and no way in without a key."""

import pytest
import torch

pytest.importorskip("flwr", reason="the flower extra is not installed")

from fedreft_lib import load_run, run
from fedreft_lib.flower import loopback, secrets
from fedreft_lib.worlds import open_world
from tests.test_federation import same
from tests.test_worlds import small

MOST = 600.0  # seconds


def test_a_federation_with_tls_and_keys_gives_the_local_numbers_and_nothing_to_strangers(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    config = small(clients=2, tasks=("arc_easy", "piqa"), rounds=1, test_size=2, train_size=4)
    strangers = {
        "no registered key": "Failed to activate SuperNode",
        "another certificate": "CERTIFICATE_VERIFY_FAILED",
    }
    with loopback.federation(tmp_path / "flower", clients=2) as here:
        key, _ = secrets.node_key(tmp_path / "stranger")
        here.start_node(1, key, name="no registered key")
        other, *_ = secrets.certificates(tmp_path / "other")
        here.start_node(2, here.register(3), name="another certificate", ca=other)
        here.wait(here.submit(config, tmp_path / "run"), MOST)
        for name, reason in strangers.items():
            assert here.processes[name].wait(60)  # it has given up, with an error
            assert reason in (tmp_path / "flower" / "logs" / f"{name}.log").read_text()
        started = list(here.processes.values())
    assert all(process.poll() is not None for process in started)
    open_world(config).memo.clear()
    same(load_run(tmp_path / "run"), run(config, progress=False))
