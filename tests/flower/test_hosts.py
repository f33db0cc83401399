"""Hosts that keep the model between Flower's processes, and have their own client's files and nobody else's."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from multiprocessing.connection import Client, Listener
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr", reason="the flower extra is not installed")

from fedreft_lib import RunConfig, run
from fedreft_lib.errors import ConfigError, DataError, FedReFTError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.flower import HIDDEN, MESSAGES, records, relay
from fedreft_lib.flower.client_app import HANDLERS
from fedreft_lib.flower.host import Host
from fedreft_lib.flower.server_app import serve
from fedreft_lib.model import shared
from tests.flower.grid import DirectGrid
from tests.flower.own_files import TASKS, own, written
from tests.helpers.federations import same


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path)


def labelled(folder, **changes) -> RunConfig:
    """The same questions as texts with labels, for an encoder: two, three and four classes."""
    for path in (folder / "data").rglob("*.json"):
        task = path.name.split("_")[0]
        rows = json.loads(path.read_text(encoding="utf-8"))
        texts = [{"text_a": row["question"], "label": i % TASKS[task]} for i, row in enumerate(rows)]
        path.write_text(json.dumps(texts), encoding="utf-8")
    fields = dict(benchmark="glue", backbone="tiny-roberta", positions="f2", max_length=32)
    return own(folder, **{**fields, **changes})


@contextlib.contextmanager
def hosts(folder, clients: int = 3, apart: bool = True):
    """What Flower's processes reach them by. apart: each has a folder with its own client's files alone."""
    stop, threads, configs = threading.Event(), [], []

    def listens(listener: Listener, host: Host) -> None:
        while not stop.is_set():
            relay.answer_one(listener, host.answer)

    with contextlib.ExitStack() as listeners:
        for k in range(clients):
            data = folder / "data"
            if apart:
                data = folder / f"host{k + 1}"
                shutil.copytree(folder / "data" / f"client{k + 1}", data / f"client{k + 1}")
            listener = listeners.enter_context(Listener())
            threads.append(
                threading.Thread(target=listens, args=(listener, Host(k, folder / "nodes", data)), daemon=True)
            )
            configs.append({"link": listener.address})
        for thread in threads:
            thread.start()
        try:
            yield configs
        finally:
            stop.set()
            for config in configs:
                with Client(config["link"]):
                    pass  # comes, says nothing, and goes
            for thread in threads:
                thread.join(20)


@pytest.mark.parametrize("config", (own, labelled))
def test_hosts_with_their_own_files_alone_give_the_numbers_of_one_process_that_has_all(folder, config):
    config = config(folder, mixing="adaptive", head="averaged", max_length=24)
    expected = run(config, progress=False)
    with hosts(folder) as configs:
        elsewhere = config.but(data_dir="on each host")
        found = serve(DirectGrid(relay.client_app(), 3, configs=configs), elsewhere, None, patience=60.0)
    assert [*expected.history["client"].unique()][:3] == ["client1-birds", "client2", "client3-towns"]
    same(found, expected)
    assert found.manifest["data"] == expected.manifest["data"]
    assert found.cut == expected.cut and bool(found.cut) == (config.benchmark != "glue")  # questions are cut


def test_hosts_whose_labels_differ_are_told_before_they_train(folder):
    config = labelled(folder).but(data_dir="on each host")
    for path in (folder / "data" / "client2").glob("birds_*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace('"label": 1', '"label": 7'), encoding="utf-8")
    with hosts(folder) as configs, pytest.raises(DataError, match="labels of birds are 0, 1 with .* and 0, 7 with"):
        serve(DirectGrid(relay.client_app(), 3, configs=configs), config, None, patience=60.0)


def test_hosts_that_bring_more_and_less_give_the_numbers_of_one_process(tmp_path):
    config = own(written(tmp_path, (100, 10, 3)), train_size=100, mixing="adaptive", rounds=1)
    expected = run(config, progress=False)
    with hosts(tmp_path) as configs:
        found = serve(DirectGrid(relay.client_app(), 3, configs=configs), config, None, patience=60.0)
    same(found, expected)
    assert [len(client.train) for client in assemble(config).clients] == [97, 19, 2]


def test_a_host_reads_its_own_client_alone_and_loads_the_model_once(folder):
    config = own(folder)
    for k in (0, 2):
        shutil.rmtree(folder / "data" / f"client{k + 1}")
    host = Host(1, folder / "nodes", folder / "data")
    federation = host.opened(config, 0)
    assert [len(client.train) for client in federation.clients] == [0, 8, 0]
    shared._shared.clear()
    before = len(shared.loaded)
    for _ in range(3):
        host.answer("query.hello", records.packed({"config": config.model_dump(mode="json")}))
    assert len(shared.loaded) == before + 1


def test_a_host_that_keeps_the_world_notices_that_its_files_changed(folder):
    config, host = own(folder), Host(1, folder / "nodes", folder / "data")
    values = {"config": config.model_dump(mode="json")}
    said = records.values(host.answer("query.hello", records.packed(values)))
    scores = records.packed({**values, "has": said["has"], "round": 0, "untrained": True, "expects": ""})
    assert records.values(host.answer("evaluate.scores", scores))["rows"]
    path = folder / "data/client2/rivers_test.json"
    good = path.read_text(encoding="utf-8")
    rows = json.loads(good)
    path.write_text(json.dumps([{**row, "gold": 1 - row["gold"]} for row in rows]), encoding="utf-8")
    with pytest.raises(FedReFTError, match="the data of client 2 changed since the run began"):
        host.answer("evaluate.scores", scores)
    path.write_text(good, encoding="utf-8")
    assert records.values(host.answer("evaluate.scores", scores))["rows"]
    assert records.values(host.answer("query.hello", records.packed(values))) == said


def test_also_of_what_is_dealt_a_host_encodes_its_own_clients_part_alone(folder):
    config = RunConfig(
        backbone="tiny-llama", source="synthetic", rank=2, layers="2-3", train_size=8, held_out_size=4, test_size=5
    )
    every, one = assemble(config), assemble(config, 2)
    assert one.questions[2] == every.questions[2] and len(one.clients[2].train) == 8
    assert not any(part for k in (0, 1, 3) for part in (one.questions[k].train, one.questions[k].test))


def test_where_files_are_is_for_the_host_to_say(folder):
    with hosts(folder) as configs:
        (folder / "host2" / "client2" / "rivers_test.json").unlink()
        with (
            pytest.warns(UserWarning, match="a node cannot take part.*There is no test file of rivers in"),
            pytest.raises(FedReFTError, match=r"these clients have not come: \[2\]"),
        ):
            serve(DirectGrid(relay.client_app(), 3, configs=configs), own(folder), None, patience=3.0)
    with pytest.raises(ConfigError, match="started without --data"):
        Host(0, folder / "nodes", None).opened(own(folder), 0)


def test_a_host_goes_on_after_an_error_and_after_somebody_who_leaves(folder):
    with hosts(folder, 1) as [config]:
        with pytest.raises(RuntimeError, match="ConfigError: lr: input should be greater"):
            relay.ask(config["link"], "query.hello", records.packed({"config": {"lr": -1}}))
        with pytest.raises(RuntimeError, match="KeyError: 'query.secrets'"):
            relay.ask(config["link"], "query.secrets", records.packed({}))
        for nonsense in (b"{}", b"[1]", b"\xff", b'{"arrays": {"a": 1}}'):
            with Client(config["link"]) as connection:
                connection.send_bytes(nonsense)
        asked = records.packed({"config": own(folder).model_dump(mode="json")})
        assert records.values(relay.ask(config["link"], "query.hello", asked))["examples"] == 8


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.int64))
def test_what_goes_over_the_link_arrives_to_the_bit(dtype):
    tensors = {"a.R": torch.randn(3, 5).to(dtype), "none": torch.zeros(0, 2).to(dtype), "one": torch.ones(()).to(dtype)}
    with Listener() as listener:
        threading.Thread(target=relay.answer_one, args=(listener, lambda kind, content: content), daemon=True).start()
        sent = records.packed({"round": 3, "text": "é\n"}, tensors)
        found = relay.ask(listener.address, "train.learn", sent)
    assert found == sent and records.values(found) == {"round": 3, "text": "é\n"}
    for name, tensor in records.tensors(found).items():
        assert tensor.dtype == dtype and torch.equal(tensor, tensors[name])


def test_the_app_that_passes_messages_on_loads_neither_torch_nor_transformers():
    app = Path(relay.__file__).parent / "app" / "fedreft_client.py"
    code = f"import runpy, sys; runpy.run_path({str(app)!r}); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_passed_on_is_what_hosts_know():
    assert set(HANDLERS) == {*MESSAGES, HIDDEN}


def test_a_test_of_everybodys_questions_is_refused_where_nobody_has_them(folder):
    with pytest.raises(ConfigError, match="nobody has them together"):
        serve(None, own(folder, union_size=4), None)
