"""A deployment on loopback addresses, with TLS and keys: the numbers of one process out of everybody's own files, a
model that is loaded once, and no way in without a key."""

import re
import shutil
import socket
import ssl
import sys

import pytest
import torch

pytest.importorskip("flwr", reason="the flower extra is not installed")

from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedreft_lib import load_run, run
from fedreft_lib.errors import FedReFTError
from fedreft_lib.flower import certificates, local_deployment
from tests.flower.own_files import own, written
from tests.helpers.federations import same

MOST = 600.0  # seconds


# ---- what it stands on, without its processes -----------------------------------------------------------------------


def greets(server: ssl.SSLContext, authority) -> None:
    """TLS's handshake of a client that trusts an authority alone, over no wire. Raises ssl.SSLError."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=str(authority)).wrap_bio(back, there, server_hostname="127.0.0.1")
    other = server.wrap_bio(there, back, server_side=True)
    waiting = [client, other]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass


def test_a_server_is_known_by_its_own_authority_and_by_no_other(tmp_path):
    ca, certificate, key = certificates.certificates(tmp_path / "here")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    greets(server, ca)
    other, *_ = certificates.certificates(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match="CERTIFICATE_VERIFY_FAILED"):
        greets(server, other)


def test_every_key_is_another_and_nobody_elses_to_read(tmp_path):
    (one, public), (other, _) = (certificates.node_key(tmp_path / name) for name in ("a", "b"))
    loaded = load_ssh_private_key(one.read_bytes(), None)
    assert loaded.public_key() == load_ssh_public_key(public.read_bytes())
    assert one.read_bytes() != other.read_bytes() and one.stat().st_mode & 0o077 == 0


def test_a_superlink_whose_port_another_program_has_taken_meanwhile_takes_another(tmp_path):
    here = local_deployment.Loopback(tmp_path)
    with socket.socket() as other:
        other.bind((here.address, here.port))
        other.listen()
        try:
            here.start_superlink()
            assert here.port != other.getsockname()[1]
            assert here.flwr("ls", local_deployment.SITE)["runs"] == []  # flwr knows where it is
        finally:
            here.stop()


def test_the_superlink_asks_for_tls_and_for_each_nodes_key_and_a_node_gives_both(tmp_path, monkeypatch):
    here, started = local_deployment.Loopback(tmp_path), {}
    monkeypatch.setattr(here, "start", lambda name, *command: started.update({name: [*map(str, command)]}))
    monkeypatch.setattr(here, "await_health", lambda name, url: started.update(health=url))
    here.start_superlink()
    here.start_node(2, tmp_path / "its key", data=tmp_path / "its data")
    superlink, node = started["superlink"], started["client2"]
    assert "--enable-supernode-auth" in superlink and "--insecure" not in superlink + node
    assert started["health"].startswith("https://")
    for option, value in (("--ssl-certfile", here.certificate), ("--ssl-keyfile", here.key)):
        assert superlink[superlink.index(option) + 1] == str(value)
    for option, value in (("--root-certificates", here.ca), ("--key", tmp_path / "its key")):
        assert node[node.index(option) + 1] == str(value)


def test_every_process_has_ended_when_a_deployment_is_stopped(tmp_path):
    here = local_deployment.Loopback(tmp_path)
    for name, code in (("one", "import time; time.sleep(600)"), ("two", "")):
        here.start(name, sys.executable, "-S", "-c", code)
    started = list(here.processes.values())
    here.stop()
    assert all(process.poll() is not None for process in started) and not here.processes


def test_a_command_of_flowers_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    silent.chmod(0o700)
    monkeypatch.setattr(local_deployment, "program", lambda name: str(silent))
    monkeypatch.setattr(local_deployment, "ANSWERS_WITHIN", 0.2)
    with pytest.raises(FedReFTError, match=r"silent ls .* did not answer within 0\.2 seconds"):
        local_deployment.Loopback(tmp_path).flwr("ls", "loopback")


# ---- all of it ------------------------------------------------------------------------------------------------------


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
