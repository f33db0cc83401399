"""States that are not at hand read like a matrix, and cost what is asked of them."""

import dataclasses
import json

import pytest
import torch

from fedreft_lib import load_run
from fedreft_lib.errors import ConfigError, DamageWarning
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import enrolled, start
from fedreft_lib.federation.participation import away
from fedreft_lib.federation.training import train_clients
from fedreft_lib.files import save_tensors
from fedreft_lib.methods import METHODS
from fedreft_lib.runs import checkpoints
from fedreft_lib.runs.client_states import ClientStates, OnDisk
from tests.helpers.federations import finish, same, small, stopped


def test_they_read_and_change_as_a_matrix_does(tmp_path):
    generator = torch.Generator().manual_seed(0)
    common, kept = torch.randn(6, generator=generator), torch.randn(3, 6, generator=generator)
    path = tmp_path / "rows.safetensors"
    save_tensors({"X": kept}, path)
    states = ClientStates(common, 5, {1: OnDisk(path, 4, 2), 3: kept[0]})
    X = torch.stack([common, kept[2], common, kept[0], common])
    assert torch.equal(states.all, X) and torch.equal(torch.stack(list(states)), X) and len(states) == len(X) == 5
    assert torch.equal(states[1], X[1]) and torch.equal(states[[3, 1, 0]], X[[3, 1, 0]]) and states[[]].shape == (0, 6)
    who, rows = torch.tensor([4, 1]), torch.randn(2, 6, generator=generator)
    assert torch.equal(states.index_copy(0, who, rows).all, X.index_copy(0, who, rows))
    states[3].zero_()
    states[[0, 3]].zero_()
    assert torch.equal(states.all, X)  # what is read is a copy


def test_clients_that_nobody_has_drawn_cost_nothing():
    config = small(clients=8, setup="mixed", train_size=4, sampled=3, rounds=2)
    assert enrolled(assemble(config), config).own == {}
    done = finish(config)
    drawn = {k for t in (1, 2) for k in range(8) if k not in away(config, t)}
    assert set(done.clients.own) == drawn and len(drawn) < 8
    assert [len(each.A) for each in done.round_mixing] == [3, 3] and done.mixing_matrices.shape == (2, 8, 8)


# ---- on disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def spread(monkeypatch):
    """Every federation is a large one, whose rounds each write their own clients alone."""
    monkeypatch.setattr(checkpoints, "IN_ONE_FILE", 0)


MANY = {"clients": 8, "setup": "mixed", "train_size": 4, "sampled": 3, "rounds": 5, "test_size": 2}


def files(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(("method", "stop"), [("fedreft", 1), ("fedreft", 3), ("fedadam", 3), ("flora", 1)])
def test_a_run_whose_states_are_on_disk_is_the_run_in_memory_and_goes_on_to_the_same_bits(
    tmp_path, spread, method, stop
):
    config = small(**MANY, method=method, **({"intervention": "lora"} if method == "flora" else {}))
    whole = finish(config)
    on_disk = finish(config, tmp_path / "whole")
    same(on_disk, whole)
    same(load_run(tmp_path / "whole"), whole)
    assert all(isinstance(row, OnDisk) for row in on_disk.clients.own.values())
    stopped(config, tmp_path / "stopped", stop)
    same(finish(config, tmp_path / "stopped"), whole)


def test_a_round_writes_the_states_that_it_made_and_keeps_the_files_that_others_are_in(tmp_path, spread):
    config = small(**MANY)
    done = finish(config, tmp_path)
    drawn = {t: [k for k in range(8) if k not in away(config, t)] for t in range(1, 6)}
    newest = {t: {k: max(s for s in range(1, t + 1) if k in drawn[s]) for s in drawn for k in drawn[s] if s <= t}
              for t in (4, 5)}  # fmt: skip
    needed = {4, 5, *newest[4].values(), *newest[5].values()}
    assert files(tmp_path) == [f"round_{t:04d}.safetensors" for t in sorted(needed)]
    for t in needed:
        tensors = checkpoints.load_tensors(tmp_path / "checkpoints" / checkpoints.name_of(t))[0]
        assert tensors["clients"].tolist() == drawn[t] and tensors["X"].shape == (3, done.spec.size)


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_round_that_needs_a_damaged_file_is_not_whole(tmp_path, spread, damage):
    config = small(**MANY)
    whole = finish(config)
    finish(config, tmp_path / "a")
    victim = tmp_path / "a" / "checkpoints" / files(tmp_path / "a")[0]
    needing = json.loads((tmp_path / "a" / "manifest.json").read_text())["checkpoint"]
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-5])
    assert victim.name != needing
    with pytest.warns(DamageWarning, match=victim.name):
        again = finish(config, tmp_path / "a")
    same(again, whole)
    same(load_run(tmp_path / "a"), whole)


def test_a_file_of_another_run_among_those_that_are_needed_is_refused(tmp_path, spread):
    config = small(**MANY)
    finish(config, tmp_path)
    victim = tmp_path / "checkpoints" / files(tmp_path)[0]
    tensors, notes = checkpoints.load_tensors(victim)
    other = json.loads(notes["config"]) | {"seed": config.seed + 1}
    save_tensors(tensors, victim, {**notes, "config": json.dumps(other)})
    with pytest.raises(ConfigError, match="holds a run with another seed"):
        finish(config, tmp_path)


def test_a_federation_that_becomes_large_and_small_limits_do_not_matter_to_its_bits(tmp_path, monkeypatch):
    config = small(**MANY)
    whole = finish(config)
    size = 4 * assemble(config).model.spec.size
    monkeypatch.setattr(checkpoints, "IN_ONE_FILE", 4 * size)  # the first round's three fit, later ones do not
    done = finish(config, tmp_path)
    same(done, whole)
    assert {type(row) for row in done.clients.own.values()} == {OnDisk}
    same(load_run(tmp_path), whole)


# ---- one state for all ----------------------------------------------------------------------------------------------


ONE_FOR_ALL = [name for name, strategy in METHODS.items() if strategy.one_for_all]


@pytest.mark.parametrize("method", ONE_FOR_ALL)
def test_who_missed_rounds_begins_with_the_servers_newest_state(method):
    """Client 4 joins in round 3: it trains from what the others have, and is tested with it."""
    extra = {"intervention": "lora"} if method in ("fedit", "flora") else {}
    config = small(method=method, joins=[[4, 3]], rounds=3, test_size=2, eval_every=1, **extra)
    done = finish(config)
    fetched = done.history[done.history["metric"] == "brought up to date"]
    assert list(zip(fetched["round"], fetched["client"], strict=True)) == [(3, assemble(config).clients[3].name)]
    assert fetched["downlink_bytes"].item() > 0
    held = {n.removeprefix("for all."): x for n, x in done.memory.items() if n.startswith("for all.")}
    for row in done.states:
        assert all(torch.equal(done.spec.named(row)[name], tensor) for name, tensor in held.items())


def test_fedavg_with_drawn_clients_goes_on_from_round_to_round():
    """By hand: the drawn ones train from the newest mean, whoever was drawn before."""
    config = small(clients=6, setup="mixed", method="fedavg", sampled=2, rounds=3, retraction="raw", test_size=1)
    done, federation = finish(config), assemble(config)
    mean = start(federation, config)[0]
    for t in (1, 2, 3):
        who = [k for k in range(6) if k not in away(config, t)]
        states = {k: federation.model.spec.named(mean) for k in who}
        trained = train_clients(dataclasses.replace(federation, memo={}), config, states, t)
        mean = torch.stack([federation.model.spec.row(trained[k].state) for k in who]).mean(0)
    torch.testing.assert_close(done.states[who], mean.expand(2, -1), atol=1e-6, rtol=1e-5)


def test_abm_has_no_state_for_all():
    done = finish(small(joins=[[4, 3]], rounds=3, test_size=1))
    assert "brought up to date" not in set(done.history["metric"]) and not done.memory
