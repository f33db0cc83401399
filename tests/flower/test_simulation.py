"""Flower's own simulation, with Ray: the numbers of a run in one process."""

import os
import subprocess
import sys
import threading

import pytest
import torch

pytest.importorskip("flwr", reason="the flower extra is not installed")

from flwr.app import Context, RecordDict

from fedreft_lib import load_run, run
from fedreft_lib.batch.jobs import PROJECT
from fedreft_lib.errors import ConfigError, FedReFTError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.flower import local_deployment, program, simulation
from tests.flower.grid import DirectGrid
from tests.flower.test_rounds import equal
from tests.helpers.federations import same, small


def simulated(config, folder):
    """How it ended: code, and what it said last. A process of its own, since Ray leaves some of its own in it."""
    command = [sys.executable, "-m", "tests.flower.simulated", config.model_dump_json(), str(folder)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


SIMULATED = {
    "FedReFT": {"mixing": "adaptive"},
    "FedGMM: extras, statistics, a mixture": {"method": "fedgmm", "gmm_dims": 4},
    "FedGLOMO: server memory, two trajectories": {"method": "fedglomo"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fields", SIMULATED.values(), ids=SIMULATED)
def test_a_simulation_gives_the_numbers_of_one_process_and_is_read_back(tmp_path, fields):
    config = small(rounds=2, **fields)
    assert simulated(config, tmp_path)[0] == 0
    found = load_run(tmp_path)
    assemble(config).memo.clear()
    expected = run(config, progress=False)
    equal(found, expected)
    assert found.manifest["engine"] == "flower" and found.manifest["data"] == expected.manifest["data"]
    equal(run(config, tmp_path, progress=False), expected)  # and is finished


@pytest.mark.slow
def test_what_ends_a_run_ends_the_simulation_with_the_same_sentence(tmp_path):
    code, said = simulated(small(hostile=3, attack="one_nan", rounds=1), tmp_path)
    assert code and "round 1 has 1 admitted updates and needs 2" in said


@pytest.mark.slow
def test_flwr_run_simulates_the_same_app(tmp_path):
    config = small(rounds=1)
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    given = f'config="{tmp_path / "config.json"}" folder="{tmp_path / "run"}"'
    cpus = os.cpu_count()
    resources = f"num-supernodes={config.clients} client-resources-num-cpus={cpus} init-args-num-cpus={cpus}"
    here = local_deployment.Loopback(tmp_path / "flower", threads=torch.get_num_threads())
    (here.folder / "flwr" / "cli" / "config.toml").write_text(
        f'[superlink.{local_deployment.SITE}]\naddress = "127.0.0.1:{here.port}"\ninsecure = true\n', encoding="utf-8"
    )
    try:
        here.start(
            "superlink", program("flower-superlink"), "--insecure", "--simulation", "--host", here.address,
            "--port", here.port, "--disable-runtime-dependency-installation",
        )  # fmt: skip
        here.await_health("superlink", f"http://{here.address}:{here.port}/health")
        found = here.flwr(
            "run", local_deployment.APP, local_deployment.SITE, "--federation-config", resources, "-c", given
        )
        here.wait(str(found["run-id"]), 300)
    finally:
        here.stop()
    assemble(config).memo.clear()
    same(load_run(tmp_path / "run"), run(config, progress=False))


def breaking_down(times):
    """Flower's run_simulation, which breaks down so many times once the server is at work, and then does not."""
    left = [times]

    def run_simulation(server_app, client_app, clients, backend_config):
        grid, context = DirectGrid(client_app, clients), Context(1, 1, {}, RecordDict(), {})
        if left[0]:
            left[0] -= 1
            grid.get_node_ids = list  # nobody comes
            threading.Thread(target=server_app, args=(grid, context)).start()
            raise RuntimeError("raylet did not start")
        server_app(grid, context)

    return run_simulation


def test_a_simulation_that_breaks_down_is_tried_once_more(tmp_path, monkeypatch):
    config = small(rounds=1)
    monkeypatch.setattr(simulation, "run_simulation", breaking_down(1))
    with pytest.warns(UserWarning, match="broke down.*tried once more"):
        found = simulation.simulate(config, tmp_path, progress=False)
    assemble(config).memo.clear()
    same(found, run(config, progress=False))
    monkeypatch.setattr(simulation, "run_simulation", breaking_down(2))
    with pytest.warns(UserWarning, match="broke down"), pytest.raises(FedReFTError, match="broke down twice"):
        simulation.simulate(config.but(seed=1), tmp_path / "two", progress=False)


def test_the_number_of_processes_follows_threads_clients_memory_and_backbone(monkeypatch, tmp_path):
    config, room = small(device="cpu"), {"free": 100 * 2**30}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    monkeypatch.setattr(simulation, "free_memory", lambda device: room["free"])

    def by_rule(threads: int, **changes) -> int:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return simulation.by_rule(config.but(**changes))

    assert by_rule(1) == 1 and by_rule(3) == 3 and by_rule(5) == config.clients == 4
    assert by_rule(3, backbone="smollm2-135m-instruct") == 3
    assert by_rule(3, backbone=str(tmp_path)) == 3
    assert by_rule(3, backbone="on/the-hub") == 1
    room["free"] = 4 * 2**30
    assert by_rule(4) == by_rule(4, backbone=str(tmp_path)) == 2
    (tmp_path / "model.safetensors").write_bytes(bytes(2**28))
    assert by_rule(4, backbone=str(tmp_path)) == 1
    room["free"] = 0
    assert by_rule(4) == 1


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "2"])
def test_a_number_of_processes_that_is_none_is_refused(number, tmp_path):
    with pytest.raises(ConfigError, match="at_once must be a number of processes from 1"):
        simulation.simulate(small(rounds=1), tmp_path, at_once=number)
    with pytest.raises(ConfigError, match="at_once must be"):
        simulation.simulate_sums(small(rounds=1, aggregation="mean"), tmp_path, at_once=number)
