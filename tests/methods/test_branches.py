"""Several branches at one place add what their formulas say."""

import pytest
import torch

from fedreft_lib.core.interventions import DiReFT, LoReFT
from fedreft_lib.methods.branches import Blend, Gated, Stacked, branch, named
from fedreft_lib.methods.lora import LoRA, SmallLoRA, SmallLoReFT

D_IN, D_OUT, RANK, TOKENS = 12, 7, 3, 5
SCALE = 1.7
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def reft_adds(h, phi):
    """R^T (W h + b - R h) for each row of h (n, d), one site, in float64."""
    R, W, b = (phi[name].double() for name in "RWb")
    return torch.stack([R.T @ (W @ x + b - R @ x) for x in h.double()])


def lora_adds(x, phi, scale=SCALE):
    """s B A x for each row of x (n, d_in), one module, in float64."""
    return torch.stack([scale * phi["B"].double() @ phi["A"].double() @ each for each in x.double()])


def drawn(kind, *dims, places=1, seed=0):
    """A state whose tensors are all random (R orthonormal where it is meant to be); of the first place alone."""
    generator = torch.Generator().manual_seed(seed)
    shapes = kind.shapes(places, RANK, *dims)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in kind.rotated:
        state[name] = torch.linalg.qr(state[name].mT)[0].mT
    return {name: tensor[0] for name, tensor in state.items()}


def tokens(d=D_IN, n=TOKENS):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(9))


KINDS = [(LoReFT, (D_IN,), reft_adds), (LoRA(SCALE), (D_IN, D_OUT), lora_adds)]
both = pytest.mark.parametrize(("kind", "dims", "adds"), KINDS, ids=["loreft", "lora"])


@both
def test_one_branch_adds_its_formula(kind, dims, adds):
    x, phi = tokens(), drawn(kind, *dims)
    torch.testing.assert_close(kind.delta(x, phi).double(), adds(x, phi), **CLOSE)


def test_lora_is_a_map_without_an_offset():
    x, phi = tokens(), drawn(LoRA(SCALE), D_IN, D_OUT)
    found = LoRA(SCALE).as_map(phi)
    assert set(found) == {"A", "B"}
    torch.testing.assert_close(LoRA(SCALE).delta(x, phi), x @ (found["B"] @ found["A"]).T, **CLOSE)


def test_small_states_add_their_formulas():
    x, phi = tokens(), drawn(SmallLoRA(SCALE), D_IN, D_OUT)
    B, S, A = (phi[name].double() for name in "BSA")
    expected = torch.stack([SCALE * B @ S @ A @ each for each in x.double()])
    torch.testing.assert_close(SmallLoRA(SCALE).delta(x, phi).double(), expected, **CLOSE)
    phi = drawn(SmallLoReFT(), D_IN)
    R, S, V, b = (phi[name].double() for name in "RSVb")
    expected = torch.stack([R.T @ (S @ V @ h + b - R @ h) for h in x.double()])
    torch.testing.assert_close(SmallLoReFT().delta(x, phi).double(), expected, **CLOSE)
    torch.testing.assert_close(SmallLoReFT().edit(x, phi).double(), x.double() + expected, **CLOSE)


# ---- names ----------------------------------------------------------------------------------------------------------


def test_a_branchs_tensors_carry_its_name_and_come_back_under_their_own():
    phi = {"R": torch.ones(1), "b": torch.zeros(1)}
    assert list(named("own", phi)) == ["own.R", "own.b"]
    assert branch({**named("rest", phi), **named("own", {"R": torch.ones(2)}), "ownR": phi["b"]}, "rest") == phi


@pytest.mark.parametrize("form", [Gated, Blend], ids=["gated", "blend"])
@both
def test_all_branches_start_alike_and_do_not_share_memory(form, kind, dims, adds):
    made = form(kind)
    phi = made.init(2, RANK, *dims, start="random", generator=torch.Generator().manual_seed(3))
    alone = kind.init(2, RANK, *dims, start="random", generator=torch.Generator().manual_seed(3))
    assert {name: tuple(t.shape) for name, t in phi.items()} == made.shapes(2, RANK, *dims)
    for name in made.branches:
        assert all(torch.equal(tensor, alone[n]) for n, tensor in branch(phi, name).items())
    first, second = (branch(phi, name) for name in made.branches)
    assert not {t.data_ptr() for t in first.values()} & {t.data_ptr() for t in second.values()}
    assert set(made.rotated) == {f"{name}.{each}" for name in made.branches for each in kind.rotated}


# ---- gated ----------------------------------------------------------------------------------------------------------


@both
def test_gated_weighs_its_branches_at_each_token_by_a_softmax_router(kind, dims, adds):
    x, phi = tokens(), drawn(Gated(kind), *dims)
    expected = []
    for each in x:
        scores = (phi["route"].double() @ each.double()).exp()
        parts = [adds(each[None], branch(phi, name))[0] for name in ("rest", "own")]
        expected.append((scores[0] * parts[0] + scores[1] * parts[1]) / scores.sum())
    torch.testing.assert_close(Gated(kind).delta(x, phi).double(), torch.stack(expected), atol=1e-4, rtol=1e-4)


@both
def test_the_router_starts_undecided(kind, dims, adds):
    made = Gated(kind)
    start = made.init(1, RANK, *dims, start="random", generator=torch.Generator().manual_seed(0))
    assert start["route"].shape == (1, 2, D_IN) and not start["route"].any()
    x, phi = tokens(), {**drawn(made, *dims), "route": start["route"][0]}
    halves = 0.5 * adds(x, branch(phi, "rest")) + 0.5 * adds(x, branch(phi, "own"))
    torch.testing.assert_close(made.delta(x, phi).double(), halves, **CLOSE)


# ---- blend ----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_blend_gives_the_local_branch_its_share(kind, dims, adds, a):
    x, phi = tokens(), drawn(Blend(kind), *dims)
    expected = a * adds(x, branch(phi, "local")) + (1 - a) * adds(x, branch(phi, "global"))
    torch.testing.assert_close(Blend(kind, a).delta(x, phi).double(), expected, **CLOSE)


@both
def test_each_row_may_have_its_own_share(kind, dims, adds):
    x, phi, shares = tokens(), drawn(Blend(kind), *dims), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])[:, None]
    expected = shares * adds(x, branch(phi, "local")) + (1 - shares) * adds(x, branch(phi, "global"))
    found = Blend(kind, 0.7).delta(x, {**phi, "share": shares})
    torch.testing.assert_close(found.double(), expected, **CLOSE)


# ---- stacked --------------------------------------------------------------------------------------------------------


def test_stacked_additions_in_a_linear_module_all_read_the_same_input():
    kind = LoRA(SCALE)
    made = Stacked(kind, rounds=2, clients=4)
    x, phi = tokens(), drawn(made, D_IN, D_OUT)
    assert phi["stack.A"].shape == (2, 4 * RANK, D_IN) and phi["stack.B"].shape == (2, D_OUT, 4 * RANK)
    assert "stack.c" not in phi
    frozen = sum(phi["stack.B"][t].double() @ phi["stack.A"][t].double() for t in range(2))
    expected = x.double() @ frozen.T + lora_adds(x, branch(phi, "fresh"))
    torch.testing.assert_close(made.delta(x, phi).double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", [LoReFT, DiReFT], ids=lambda kind: kind.name)
def test_stacked_edits_of_the_residual_stream_follow_each_other(kind):
    made = Stacked(kind, rounds=3, clients=2)
    x, phi = tokens(), drawn(made, D_IN)
    assert phi["stack.A"].shape == (3, 2 * RANK, D_IN) and phi["stack.c"].shape == (3, D_IN)
    h = x.double()
    for t in range(3):
        A, B, c = (phi[f"stack.{name}"][t].double() for name in "ABc")
        h = h + h @ (B @ A).T + c
    h = h + kind.delta(h, {name: tensor.double() for name, tensor in branch(phi, "fresh").items()})
    torch.testing.assert_close(made.edit(x, phi).double(), h, atol=1e-3, rtol=1e-4)


@both
def test_an_empty_stack_adds_nothing_at_all(kind, dims, adds):
    made = Stacked(kind, rounds=3, clients=2)
    start = made.init(1, RANK, *dims, start="random", generator=torch.Generator().manual_seed(3))
    alone = kind.init(1, RANK, *dims, start="random", generator=torch.Generator().manual_seed(3))
    assert {name: tuple(t.shape) for name, t in start.items()} == made.shapes(1, RANK, *dims)
    assert not any(start[name].any() for name in start if "stack" in name)
    one, other = ({name: t[0] for name, t in state.items()} for state in (start, alone))
    assert torch.equal(made.delta(tokens(), one), kind.delta(tokens(), other))


def test_edits_keep_the_precision_of_what_they_edit():
    for made in (Gated(LoReFT), Blend(LoReFT), Stacked(LoReFT), SmallLoReFT()):
        phi, h = drawn(made, D_IN), tokens()
        assert made.edit(h.bfloat16(), phi).dtype == torch.bfloat16
        expected = h.bfloat16().float() + made.delta(h.bfloat16().float(), phi)
        torch.testing.assert_close(made.edit(h.bfloat16(), phi), expected.bfloat16(), atol=0, rtol=0)
