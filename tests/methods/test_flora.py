"""FLoRA: the stack of what the clients add is their weighted sum, exactly, round after round."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.client import common_start
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.seeds import derive
from tests.helpers.federations import small
from tests.methods.test_branches import lora_adds, reft_adds

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
WEIGHTS = torch.tensor([8, 5, 2, 8], dtype=torch.float64) / 23
SCALE = 8.0  # lora_alpha 16 over rank 2


def flora(**fields):
    return small(**{"method": "flora", "rounds": 2, "lr": 0.1, "retraction": "raw", **fields})


def at(spec, row, group, place):
    """The tensors of one place under their own names."""
    return {n.removeprefix(group): t[place] for n, t in spec.named(row).items() if n.startswith(group)}


def fresh(phi):
    return {name.removeprefix("fresh."): tensor for name, tensor in phi.items() if name.startswith("fresh.")}


def places(intervention):
    groups = [""] if intervention == "loreft" else ["q_proj.", "v_proj."]
    return [(group, place) for group in groups for place in range(4 if intervention == "loreft" else 2)]


@BOTH
def test_over_two_rounds_the_stack_is_the_weighted_sum_of_what_was_added(uneven, learned, intervention):
    config = flora(intervention=intervention)
    federation = uneven(config)
    spec, kind, X = federation.model.spec, federation.model.adapter.kind, start(federation, config)
    x = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    before = {where: torch.zeros(()).double() for where in places(intervention)}
    size = 0.0
    for t in (1, 2):
        sent = learned(federation, config, X, t)
        X, _ = federated_round(federation, config, X, t)
        assert torch.equal(X, X[:1].expand(4, -1))
        for group, place in places(intervention):
            # Where the new edits are made: on the residual stream they see what the earlier ones have left.
            seen = x.double() + before[group, place] if intervention == "loreft" else x.double()
            added = []
            for row in sent:
                phi = fresh(at(spec, row, group, place))
                added.append(reft_adds(seen, phi) if intervention == "loreft" else lora_adds(seen, phi, SCALE))
            whole = before[group, place] + sum(p * each for p, each in zip(WEIGHTS, added, strict=True))
            phi = {n: torch.zeros_like(v) if n == "fresh.B" else v for n, v in at(spec, X[0], group, place).items()}
            found = kind.delta(x, phi)  # the fresh branch adds nothing: it starts at the identity
            torch.testing.assert_close(found.double(), whole, atol=1e-4, rtol=1e-4)
            before[group, place] = whole
            size += float(whole.norm())
    assert size > 1


@BOTH
def test_the_fresh_branch_starts_again_each_round_the_same_for_all_and_never_as_before(intervention):
    config = flora(intervention=intervention)
    federation = assemble(config)
    X, seen = start(federation, config), []
    for t in (1, 2):
        X, _ = federated_round(federation, config, X, t)
        expected = federation.model.start("identity", derive(config.seed, "start", t))
        named = federation.model.spec.named(X[3])
        for name in (n for n in named if "fresh." in n):
            assert torch.equal(named[name], expected[name])
        seen.append(named)
    first = common_start(federation.model.layout, config)
    name = "fresh.R" if intervention == "loreft" else "q_proj.fresh.A"
    assert not torch.equal(first[name], seen[0][name]) and not torch.equal(seen[0][name], seen[1][name])


@BOTH
def test_training_moves_the_fresh_branch_over_a_frozen_stack(learned, intervention):
    config = flora(intervention=intervention)
    federation = assemble(config)
    spec = federation.model.spec
    X, _ = federated_round(federation, config, start(federation, config), 1)
    begun, trained = spec.named(X[1]), spec.named(learned(federation, config, X, 2)[1])
    for name, tensor in trained.items():
        assert torch.equal(tensor, begun[name]) == ("stack." in name), name
        assert begun[name].any() or "fresh.B" in name or name == "fresh.b"


@BOTH
def test_each_round_fills_its_own_slot_and_leaves_the_others(intervention):
    config = flora(intervention=intervention, rounds=3)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    slots = [name for name, _ in spec.shapes if "stack." in name]
    for t in (1, 2, 3):
        earlier = spec.named(X[0])
        X, _ = federated_round(federation, config, X, t)
        for name in slots:
            now = spec.named(X[0])[name]
            assert torch.equal(now[:, : t - 1], earlier[name][:, : t - 1]) and now[:, t - 1].any()
            assert not now[:, t:].any()


@BOTH
def test_a_client_that_was_not_admitted_has_no_part_in_the_stack(uneven, learned, set_aside, intervention):
    config = flora(intervention=intervention)
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    sent = learned(federation, config, X)
    set_aside(2)
    X, _ = federated_round(federation, config, X, 1)
    x = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    for group, place in places(intervention):
        phi = at(spec, X[2], group, place)
        assert not phi["stack.B"][0][:, 4:6].any() and phi["stack.B"][0][:, :2].any()  # two columns a client
        whole = 0
        for p, row in zip((8 / 21, 5 / 21, 8 / 21), sent[[0, 1, 3]], strict=True):
            own = fresh(at(spec, row, group, place))
            whole = whole + p * (reft_adds(x, own) if intervention == "loreft" else lora_adds(x, own, SCALE))
        silent = {n: torch.zeros_like(v) if n == "fresh.B" else v for n, v in phi.items()}
        torch.testing.assert_close(federation.model.adapter.kind.delta(x, silent).double(), whole, atol=1e-4, rtol=1e-4)


def test_of_lora_K_times_as_much_is_sent_down_as_up():
    done = run(flora(intervention="lora", rounds=1), progress=False)
    up = sum(tensor.numel() for n, tensor in done.spec.named(done.states[0]).items() if "fresh." in n)
    assert done.history["uplink_bytes"].sum() == 4 * up * 4
    assert done.history["downlink_bytes"].sum() == 4 * (4 * up) * 4
    assert done.manifest["trainable_params"] == up


def test_of_loreft_K_times_R_and_W_and_one_offset_of_the_streams_width_come_down():
    done = run(flora(rounds=1), progress=False)
    named = done.spec.named(done.states[0])
    assert done.history["uplink_bytes"].sum() == 4 * 4 * sum(named[f"fresh.{n}"].numel() for n in "RWb")
    down = 4 * (named["fresh.R"].numel() + named["fresh.W"].numel()) + 4 * 64  # four sites of width 64
    assert done.history["downlink_bytes"].sum() == 4 * 4 * down


@pytest.mark.parametrize("intervention", ["direft", "orthonormal_direft", "lobireft"])
def test_every_edit_that_has_an_identity_can_be_stacked(uneven, learned, intervention):
    config = flora(intervention=intervention, rounds=1)
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    sent, (X, _) = learned(federation, config, X), federated_round(federation, config, X, 1)
    x = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    kind = federation.model.adapter.kind
    for place in range(4):
        whole = sum(
            p * kind.kind.delta(x, fresh(at(spec, row, "", place))).double()
            for p, row in zip(WEIGHTS, sent, strict=True)
        )
        found = kind.delta(x, at(spec, X[0], "", place)).double()
        torch.testing.assert_close(found, whole.expand_as(found), atol=1e-4, rtol=1e-4)
