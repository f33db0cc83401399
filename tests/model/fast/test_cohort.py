"""Clients that train in one pass learn what each of them learns alone."""

import dataclasses
import json
import math

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.core.interventions import INTERVENTIONS
from fedreft_lib.federation import training
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.training import train_clients
from fedreft_lib.model.fast.cohort import clip_each, train_together
from fedreft_lib.model.fast.owners import Lines
from fedreft_lib.model.fast.packed_attention import packs
from tests.helpers.federations import (
    GLUE,
    LORA,
    StoppedError,
    named,
    same,
    small,
    some_answers,
    stop_after,
    together,
)
from tests.helpers.models import random_backbone, random_state, steered

ALL = {"method": "local", "engine": "cohort"}
BOTH_DTYPES = [{}, LORA, GLUE]
OTHERWISE = [  # each in one of the two dtypes
    {"clients": 7}, {"clients": 2, "tasks": ("piqa", "siqa")}, {"rank": 1, "layers": "all"},
    {"rank": 8, "layers": [0, 3]}, {"tied": True}, {"positions": "l1"}, {"positions": "f12+l300"}, {"batch_size": 1},
    {"batch_size": 3, "local_epochs": 2}, {"local_steps": 5}, {"clip": 0.05}, {"weight_decay": 0.5, "warmup": 0.6},
    {"init": "random"}, {"schedule": "constant"}, {"method": "fedprox", "proximal_mu": 5.0},
    *({"intervention": name, "init": "random"} for name in INTERVENTIONS if name != "loreft"),
    {**LORA, "rank": 3, "layers": "1-3"}, {**LORA, "init": "random", "targets": ("gate_proj", "o_proj")},
    {**GLUE, "tasks": ("sst2", "stsb", "rte"), "setup": "distinct"}, {**GLUE, **LORA}, {**GLUE, "head": "private"},
    # the methods that train a part of the tensors, or several branches, or in phases
    *({"method": each, **adapter} for each in ("ffa", "fedalt", "feddpa", "flora", "fedsb") for adapter in ({}, LORA)),
    {"method": "alore"}, {"method": "alore", **LORA},
    *({"method": "flame", "active": (4, 2, 1, 1), "flame_scale": "ratio", **adapter} for adapter in ({}, LORA)),
]  # fmt: skip
ROUNDS = [
    *((fields, dtype) for fields in BOTH_DTYPES for dtype in ("float32", "bfloat16")),
    *((fields, "float32" if i % 3 else "bfloat16") for i, fields in enumerate(OTHERWISE)),
]


def opened(config, sizes=(8, 5, 2, 8, 8, 7, 8)):
    """The federation of a config with clients of these numbers of training items, and nothing remembered."""
    federation = assemble(config)
    pairs = zip(federation.clients, sizes, strict=False)
    clients = [dataclasses.replace(client, train=client.train.subset(range(n))) for client, n in pairs]
    return dataclasses.replace(federation, clients=clients, memo={})


def both(config, t=1, X=None):
    """(N, P) after training in cohorts and one by one; and the losses of each."""
    found = []
    for which in ("cohort", "one_by_one"):
        own = config.but(engine=which)
        federation = opened(own)
        X = start(federation, own) if X is None else X
        trained = train_clients(federation, own, named(federation, X), t)
        states = torch.stack([federation.model.spec.row(trained[k].state) for k in range(len(X))])
        found += [states, [trained[k].losses for k in range(len(X))]]
    return found


def apart(states, expected):
    """The largest relative distance of a client's state from what is expected."""
    return float(((states - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize(("fields", "dtype"), ROUNDS, ids=[f"{together(fields)} {dtype}" for fields, dtype in ROUNDS])
def test_a_round_in_cohorts_is_the_round_one_by_one(fields, dtype):
    config, X = small(**{**ALL, **fields}, dtype=dtype), None
    narrow = fields.get("rank") == 1 or fields.get("method") == "fedalt"  # products of a column or two
    exact = rows_stand_alone(torch.float32) and rows_stand_alone(getattr(torch, dtype)) and not narrow
    for t in (1, 2) if config.method in ("fedalt", "feddpa", "flora") else (1,):  # which go on in another way
        states, losses, expected, alone = both(config, t, X)
        if exact and packs(assemble(config).model.backbone.model, 1):
            assert torch.equal(states, expected) and losses == alone
        way = expected - (start(assemble(config), config) if X is None else X)
        small_part = 1e-5 * expected.norm(dim=1) if dtype == "float32" else 0.15 * way.norm(dim=1)
        assert ((states - expected).norm(dim=1) < small_part).all()
        for ours, theirs in zip(losses, alone, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5 if dtype == "float32" else 0.02)
        X = expected


def rows_stand_alone(dtype):
    """Whether this machine's products have rows that do not depend on how many other rows there are."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator).to(dtype)
    for columns in (weight, weight[:, :8], weight.mT[:, :8]):
        x = torch.randn(200, columns.shape[1], generator=generator).to(dtype)
        whole = x @ columns.mT
        if not all(torch.equal(x[3 : 3 + n].clone() @ columns.mT, whole[3 : 3 + n]) for n in (12, 16, 17, 40, 99, 150)):
            return False
    return True


def test_a_cohort_of_one_is_the_plain_loop_to_the_bit():
    config = small(**ALL)
    federation = assemble(config)
    X = start(federation, config)
    alone, expected = (
        train_clients(dataclasses.replace(federation, memo={}), each, named(federation, X, [2]), 1)[2]
        for each in (config, config.but(engine="one_by_one"))
    )
    assert alone.losses == expected.losses
    assert all(torch.equal(alone.state[name], expected.state[name]) for name in expected.state)


@pytest.mark.parametrize("adapter", [{"positions": "f12+l3"}, {**LORA, "layers": "2-3"}, GLUE], ids=together)
@pytest.mark.parametrize("spoilt", ["state", "data"])
def test_what_is_not_finite_in_one_client_reaches_no_other(adapter, spoilt):
    config = small(**{**ALL, **adapter})
    federation = assemble(config)
    X = start(federation, config)
    names, data = list(federation.model.spec.named(X[0])), [client.train for client in federation.clients]
    states = [federation.model.spec.named(row.clone()) for row in X]
    how = {"steps": 2, "seeds": [0, 1, 2, 3]}
    expected = train_together(federation.model, states, data, config, **how)
    if spoilt == "state":
        states[1][names[-1]].fill_(math.nan)
    elif federation.model.head:
        data[1] = dataclasses.replace(data[1], labels=[math.nan] * len(data[1]), classes=[0] * len(data[1]))
    else:
        data[1] = dataclasses.replace(data[1], hidden=[torch.full_like(h, math.nan) for h in data[1].hidden])
    found = train_together(federation.model, states, data, config, **how)
    assert not all(bool(tensor.isfinite().all()) for tensor in found[1].state.values())
    assert any(math.isnan(loss) for loss in found[1].losses)
    for k in (0, 2, 3):
        assert found[k].losses == expected[k].losses
        assert all(torch.equal(found[k].state[name], expected[k].state[name]) for name in names)


def test_each_client_is_clipped_by_its_own_norm():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.01, 1.0, 30.0])
    tensors = [torch.zeros(3, 4, 5, requires_grad=True), torch.zeros(3, 2, requires_grad=True)]
    for tensor in tensors:
        scale = sizes.view(-1, *[1] * (tensor.dim() - 1))
        tensor.grad = scale * torch.randn(tensor.shape, generator=generator)
    expected = []
    for k in range(3):
        own = [torch.zeros_like(tensor[k], requires_grad=True) for tensor in tensors]
        for each, tensor in zip(own, tensors, strict=True):
            each.grad = tensor.grad[k].clone()
        torch.nn.utils.clip_grad_norm_(own, 1.5)
        expected.append([each.grad for each in own])
    clip_each(tensors, 1.5)
    for k in range(3):
        for tensor, own in zip(tensors, expected[k], strict=True):
            torch.testing.assert_close(tensor.grad[k], own)


def test_rows_are_lined_up_by_owner_with_zeros_behind_and_taken_back():
    owners, rows = torch.tensor([2, 0, 2, 2, 3]), torch.arange(1.0, 11.0).view(5, 2)
    lines = Lines(owners, 5)
    table = lines.lined_up(rows)
    assert table.shape == (5, 8, 2) and torch.equal(lines.taken_back(table), rows)
    assert torch.equal(table[2, :3], rows[[0, 2, 3]]) and torch.equal(table[3, 0], rows[4])
    assert not table[1].any() and not table[4].any() and not table[2, 3:].any() and not table[3, 1:].any()
    assert Lines(owners[:0], 2).lined_up(rows[:0]).shape == (2, 0, 2)


def test_rows_of_several_states_in_any_order_are_those_of_each_state():
    for kind in ("llama", "roberta"):
        model = steered(random_backbone(kind), INTERVENTIONS["loreft"])
        states = [random_state(model, seed) for seed in (1, 2, 3)]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        data, owners = some_answers(5), torch.tensor([2, 0, 0, 2, 0])
        batch = data.batch(model, range(5), owners=owners)
        found = model.hidden_states(batch, stacked)
        for row, k in enumerate(owners.tolist()):
            alone = model.hidden_states(data.batch(model, range(5)), states[k])[row]
            torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=1e-5)


# ---- in a run -------------------------------------------------------------------------------------------------------


def finish(config, folder=None):
    assemble(config).memo.clear()
    return run(config, folder, progress=False)


@pytest.mark.parametrize("method", ["fedreft", "feddpa"])
def test_a_run_in_cohorts_that_was_stopped_goes_on_to_the_same_bits(monkeypatch, tmp_path, method):
    config = small(method=method, engine="cohort", test_size=2)
    whole = finish(config)
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        stop_after(patched, 2)
        finish(config, tmp_path)
    same(finish(config, tmp_path), whole)
    assert json.loads((tmp_path / "manifest.json").read_text())["engine"] == "cohort"
    one = finish(config.but(engine="one_by_one"))
    assert one.manifest["engine"] == "one_by_one" and apart(whole.states, one.states) < 1e-4  # three rounds


def test_runs_that_begin_with_the_same_cohort_share_its_first_round(monkeypatch):
    passes, together = [], training.train_together

    def counted(*args, **more):
        passes.append(1)
        return together(*args, **more)

    monkeypatch.setattr(training, "train_together", counted)
    finish(small(engine="cohort", rounds=1))
    run(small(engine="cohort", rounds=1, method="fedavg"), progress=False)
    assert len(passes) == 1
    three = small(engine="cohort", rounds=2, joins=[[1, 2]])
    found = run(three, progress=False)  # another cohort: not what was remembered of four
    assert len(passes) == 3
    same(finish(three), found)


@pytest.mark.parametrize("attack", ["one_nan", "sign_flip", "label_flip"])
def test_good_clients_train_beside_a_bad_one_as_ever(attack):
    config = small(engine="cohort", hostile=1, attack=attack, rounds=2, mixing=0.0, retraction="raw")
    bad, good = finish(config), finish(config.but(hostile=0))
    torch.testing.assert_close(bad.states[:3], good.states[:3], atol=0 if attack != "label_flip" else 1e-6, rtol=0)
    refused = bad.history[(bad.history["metric"] == "admitted") & (bad.history["value"] == 0)]
    assert len(refused) == (2 if attack == "one_nan" else 0)
