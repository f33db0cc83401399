"""FedIns: an item is edited by the instances whose keys are nearest to it, out of a pool that all clients share."""

import dataclasses

import numpy as np
import pytest
import torch

from fedreft_lib import run
from fedreft_lib.core.training import batches, learning_rate
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.evaluation import evaluate_all
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.participation import away
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import train_clients
from fedreft_lib.methods.fedins import gates
from fedreft_lib.methods.method import of_branch
from fedreft_lib.model import scoring
from fedreft_lib.seeds import derive
from tests.helpers.federations import small

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])


def ins(**fields):
    return small(**{"method": "fedins", "ins_pool": 5, "ins_top": 2, "ins_pull": 0.5, **fields})


def queries(federation, part):
    """Last layer, last token of each prompt, of the untrained backbone; one text at a time."""
    found = []
    for sequence in part.sequences:
        prompt = dataclasses.replace(sequence, ids=sequence.ids[: sequence.prompt_length], answer_lengths=())
        with torch.no_grad():
            hidden = federation.model.hidden_states(federation.model.batch([prompt]), None)
        found.append(hidden[0, -1].double().numpy())
    return np.stack(found)


def cosines(query, keys):
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (query, keys)]
    return unit[0] @ unit[1].T


def chosen(query, keys, k):
    """(items, P) bool: the k nearest keys of each query."""
    return np.argsort(np.argsort(-cosines(query, keys), axis=1), axis=1) < k


def apart(federation, config, scale=0.2):
    """X in which every client has the same state, far from the start, with keys near the items."""
    spec, X = federation.model.spec, start(federation, config)
    noise = torch.randn(X.shape[1], generator=torch.Generator().manual_seed(1))
    row = X[0] + scale * noise
    some = np.concatenate([queries(federation, client.train)[:2] for client in federation.clients])
    keys = spec.named(row)["keys"]
    keys.copy_(torch.from_numpy(some[: len(keys)]).float() / 10 + 0.05 * keys)
    return row.expand(len(X), -1).clone()


def test_gates_are_equal_shares_of_the_nearest_and_ties_go_to_the_first():
    near = torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.2], [0.3, 0.3, 0.3, 0.3, 0.3]])
    assert torch.equal(gates(near, 2), torch.tensor([[0, 0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0, 0]]))
    assert torch.equal(gates(near, 1), torch.tensor([[0, 1.0, 0, 0, 0], [1.0, 0, 0, 0, 0]]))
    torch.testing.assert_close(gates(near, 5), torch.full((2, 5), 0.2))


@BOTH
def test_a_pool_of_one_without_a_pull_on_its_key_is_fedavg_to_the_bit(intervention):
    one = run(ins(ins_pool=1, ins_top=1, ins_pull=0.0, intervention=intervention), progress=False)
    avg = run(small(method="fedavg", engine="one_by_one", intervention=intervention), progress=False)
    pool = torch.stack([one.spec.columns(one.spec.names[:-1], row[None])[0] for row in one.states])
    assert one.spec.names[-1] == "keys" and torch.equal(pool, avg.states)
    assert one.accuracy().tolist() == avg.accuracy().tolist()


@BOTH
def test_an_instance_that_no_item_chose_stays_and_the_others_learn(learned, intervention):
    config = ins(ins_top=1, intervention=intervention)
    federation = assemble(config)
    X, spec = apart(federation, config), federation.model.spec
    after, moved = learned(federation, config, X), set()
    for k, client in enumerate(federation.clients):
        before, state = spec.named(X[k]), spec.named(after[k])
        used = chosen(queries(federation, client.train), before["keys"].double().numpy(), 1).any(0)
        moved.add(tuple(used))
        for i, uses in enumerate(used):
            for name in of_branch(spec.names, f"m{i + 1}"):
                assert torch.equal(before[name], state[name]) == (not uses), name
    assert len(moved) > 1


def test_keys_move_by_sgd_towards_the_items_that_chose_them_and_the_others_stay(learned):
    config = ins(ins_top=2, local_steps=5, schedule_over="round")
    federation = assemble(config)
    X, spec = apart(federation, config), federation.model.spec
    after = learned(federation, config, X, 2)
    for k, client in enumerate(federation.clients):
        first, query = spec.named(X[k])["keys"].double().numpy(), queries(federation, client.train)
        keys, picked = first.copy(), chosen(query, first, 2)
        plan = batches(len(query), config.batch_size, 5, derive(config.seed, "batches", 2, client.name))
        for step, batch in enumerate(plan):  # the gradient of -cos(q, k) is (cos k/|k| - q/|q|) / |k|
            gradient = np.zeros_like(keys)
            for i in batch:
                for p in np.flatnonzero(picked[i]):
                    size, q = np.linalg.norm(keys[p]), query[i] / np.linalg.norm(query[i])
                    gradient[p] += config.ins_pull / len(batch) * (q @ keys[p] / size * keys[p] / size - q) / size
            gradient /= max(1.0, np.linalg.norm(gradient) / config.clip)
            keys -= config.lr * learning_rate(step, 5, config.warmup, "linear") * gradient
        found = spec.named(after[k])["keys"]
        torch.testing.assert_close(found.double(), torch.from_numpy(keys), atol=1e-6, rtol=1e-5)
        still = ~picked.any(0)
        assert torch.equal(found[still], spec.named(X[k])["keys"][still])
        nearer = cosines(query, found.double().numpy()) - cosines(query, first)
        assert (picked * nearer).sum() > 0


def test_keys_without_a_pull_stay(learned):
    config = ins(ins_pull=0.0)
    federation = assemble(config)
    X, spec = apart(federation, config), federation.model.spec
    assert torch.equal(spec.named(learned(federation, config, X)[0])["keys"], spec.named(X[0])["keys"])


@BOTH
def test_the_pool_and_its_keys_become_plain_means_member_by_member(uneven, learned, intervention):
    config = ins(intervention=intervention, retraction="raw")
    federation = uneven(config)
    X = apart(federation, config)
    told = learned(federation, config, X)
    after, report = federated_round(federation, config, X, 1)
    torch.testing.assert_close(after, told.double().mean(0).float().expand(4, -1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(report.M, torch.full((4, 4), 0.25))


@pytest.mark.parametrize("fields", [{}, {"intervention": "lora"}, {"ins_form": "scale"}], ids=str)
def test_a_test_item_is_answered_by_its_own_instances(fields):
    config = ins(**fields, test_size=12)
    federation = assemble(config)
    X = apart(federation, config, scale=0.5)
    found = [row for row in evaluate_all(federation, config, X, 1) if row["metric"] == "accuracy"]
    scored, state = {row["client"]: row["value"] for row in found}, federation.model.spec.named(X[0])
    shares = set()
    for client in federation.clients:
        (test,) = client.test
        own = chosen(queries(federation, test), state["keys"].double().numpy(), 2) / 2
        shares |= set(map(tuple, own))
        right = [
            scoring.correct(federation.model, state, test.subset([i]), config, torch.from_numpy(own[i : i + 1]))[0][0]
            for i in range(len(test))
        ]
        assert scored[client.name] == pytest.approx(100 * float(torch.stack(right).double().mean()))
    assert len(shares) > 1


def test_scale_and_shift_is_a_form_of_interventions_alone():
    done = run(ins(ins_form="scale", rounds=1), progress=False)
    assert dict(done.spec.shapes)["m1.s"] == dict(done.spec.shapes)["m5.b"] == (4, 64)
    with pytest.raises(ConfigError, match='ins_form="scale" edits the residual stream'):
        ins(ins_form="scale", intervention="lora")


def test_the_pool_and_its_keys_are_what_is_sent():
    done = run(ins(rounds=1), progress=False)
    assert done.history["uplink_bytes"].sum() == done.history["downlink_bytes"].sum() == 4 * 4 * done.spec.size


def test_the_pool_and_its_keys_are_the_mean_of_the_updates_that_arrived():
    """Three of six are drawn in each round; the first of round 1 is late. By hand."""
    fields = dict(sampled=3, rounds=2, retraction="raw", min_clients=2, clients=6, setup="mixed", test_size=1)
    first, second, third = (k for k in range(6) if k not in away(ins(**fields), 1))
    config = ins(**fields, late=[[first + 1, 1]])
    federation, again = assemble(config), [k for k in range(6) if k not in away(config, 2)]
    X, row = start(federation, config), federation.model.spec.row

    def trained(X, who, t):
        found = train_clients(federation, config, {k: federation.model.spec.named(X[k]) for k in who}, t)
        return {k: row(each.state) for k, each in found.items()}

    early = trained(X, (first, second, third), 1)
    mean = (early[second] + early[third]) / 2
    late = {first: early.pop(first)}
    arrived = late | trained(mean.expand(6, -1), [k for k in again if k not in late], 2)
    done = run(config, progress=False)
    torch.testing.assert_close(done.states[again[0]], torch.stack([*arrived.values()]).mean(0), atol=1e-6, rtol=1e-5)
