"""A deployment on loopback addresses, with TLS and keys: the numbers of one process out of everybody's own files, a
model that is loaded once, and no way in without a key."""

import re
import shutil

import pytest
import torch

pytest.importorskip("flwr", reason="the flower extra is not installed")

from fedreft_lib import load_run, run
from fedreft_lib.flower import certificates, local_deployment
from tests.flower.own_files import own, written
from tests.helpers.federations import same

MOST = 600.0  # seconds


@pytest.mark.slow
def test_a_federation_with_tls_and_keys_gives_the_local_numbers_and_nothing_to_strangers(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    config = own(written(tmp_path), clients=2, tasks=("birds", "rivers"), rounds=1, train_size=4, test_size=2)
    strangers = {
        "no registered key": "Failed to activate SuperNode",
        "another certificate": "CERTIFICATE_VERIFY_FAILED",
    }
    with local_deployment.federation(tmp_path / "flower", clients=0) as here:
        for client in (1, 2):
            data = tmp_path / f"host{client}"
            shutil.copytree(tmp_path / "data" / f"client{client}", data / f"client{client}")
            here.start_node(client, here.register(client), data=data)
        key, _ = certificates.node_key(tmp_path / "stranger")
        here.start_node(1, key, name="no registered key")
        other, *_ = certificates.certificates(tmp_path / "other")
        here.start_node(2, here.register(3), name="another certificate", ca=other)
        here.wait(here.submit(config.but(data_dir="on each host"), tmp_path / "run"), MOST)
        for name, reason in strangers.items():
            assert here.processes[name].wait(60)  # it has given up, with an error
            assert reason in log(tmp_path, name)
        started = list(here.processes.values())
    assert all(process.poll() is not None for process in started)
    for client in (1, 2):
        loaded = re.findall(r"(\S+): \S+ s; backbones loaded so far: (\d+)", log(tmp_path, f"client{client}"))
        assert {count for _, count in loaded} == {"1"}
        assert {kind for kind, _ in loaded} == {"query.hello", "train.learn", "train.take_in", "evaluate.scores"}
    found, expected = load_run(tmp_path / "run"), run(config, progress=False)
    same(found, expected)
    assert found.manifest["data"] == expected.manifest["data"]


def log(folder, name):
    return (folder / "flower" / "logs" / f"{name}.log").read_text(encoding="utf-8")
