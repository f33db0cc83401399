"""Local training does what its description says: AdamW, its schedule, clipping, and an R that stays orthonormal.

The loss here is a square that a few lines of torch give; what a model's is, tests/federation/test_training.py says.
"""

import math

import pytest
import torch

from fedreft_lib.core.rotation import Rotation, orthonormality_error
from fedreft_lib.core.training import Recipe, batches, learning_rate, train

SITES, RANK, D, EXAMPLES = 2, 3, 8, 10


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_state(seed=0):
    R = torch.linalg.qr(drawn(SITES, D, RANK, seed=seed))[0].mT.contiguous()
    return {"R": R, "W": drawn(SITES, RANK, D, seed=seed + 1), "b": drawn(SITES, RANK, seed=seed + 2)}


H, TARGET = drawn(EXAMPLES, SITES, D, seed=8), drawn(EXAMPLES, SITES, D, seed=9)


def squares(indices, phi):
    """How far h + R^T (W h + b - R h) is from a target, for some of the examples: (M,)."""
    h = H[list(indices)]
    inner = torch.einsum("srd,msd->msr", phi["W"] - phi["R"], h) + phi["b"]
    return (h + torch.einsum("srd,msr->msd", phi["R"], inner) - TARGET[list(indices)]).square().sum((1, 2)) / 50


def trained(state, recipe, losses_of=squares, **how):
    return train(state, losses_of, EXAMPLES, recipe, **{"steps": 8, "seed": 5, **how})


def near_the_start(phi, start, moving, step, steps):
    return 1.5 * sum(((phi[name] - start[name]) ** 2).sum() for name in moving)


def written_out(state, recipe, *, steps=8, seed=5, rotated=(), trains=("R", "W", "b"), penalty=None):
    """Training as its description says it, with AdamW's formulas (Loshchilov and Hutter 2019) and torch's autograd."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    rotations = {name: Rotation(state[name]) for name in rotated if name in trains}

    def at(free):
        return {**state, **{n: rotations[n](t) if n in rotations else t for n, t in free.items()}}

    free = {n: rotations[n].start() if n in rotations else state[n].clone() for n in trains}
    first, second = ({n: torch.zeros_like(t) for n, t in free.items()} for _ in range(2))
    losses, norms = [], []
    for step, indices in enumerate(batches(EXAMPLES, recipe.batch_size, steps, seed), start=1):
        free = {name: tensor.requires_grad_() for name, tensor in free.items()}
        phi = at(free)
        loss = squares(indices, phi).mean()
        pull = sum(((phi[name] - state[name]) ** 2).sum() for name in free)
        gradients = torch.autograd.grad(loss + (1.5 * pull if penalty else 0), list(free.values()))
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        lr = recipe.lr * learning_rate(step - 1, steps, recipe.warmup, recipe.schedule)
        moved = {}
        for (name, p), gradient in zip(free.items(), gradients, strict=True):
            g = gradient * min(1.0, recipe.clip / (norm + 1e-6))
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g * g
            decay = recipe.weight_decay if name in recipe.decayed and name not in rotations else 0.0
            m, v = first[name] / (1 - beta1**step), second[name] / (1 - beta2**step)
            moved[name] = (p * (1 - lr * decay) - lr * m / (v.sqrt() + eps)).detach()
        free = moved
        losses.append(float(loss.detach()))
        norms.append(norm)
    return at(free), losses, norms


@pytest.mark.parametrize(
    ("how", "recipe"),
    [
        ({"rotated": ("R",)}, {"schedule": "linear", "clip": 0.8}),
        ({}, {"schedule": "constant", "clip": 1.2, "decayed": ("R", "b")}),
        ({"rotated": ("R",), "trains": ("W", "b")}, {"schedule": "linear", "clip": 0.5}),
        ({"rotated": ("R",), "penalty": near_the_start}, {"schedule": "constant", "clip": 2.0, "batch_size": 3}),
    ],
    ids=["R orthonormal", "R free", "some tensors alone", "held near the start"],
)
def test_training_is_the_loop_written_out(how, recipe):
    state, recipe = a_state(), Recipe(**{"lr": 0.05, "batch_size": 4, "weight_decay": 0.3, "warmup": 0.3, **recipe})
    found = trained(state, recipe, **how)
    expected, losses, norms = written_out(state, recipe, **how)
    assert min(norms) < recipe.clip < max(norms)  # some steps are clipped and some are not
    assert found.losses == pytest.approx(losses, abs=1e-5)  # without the pull, where there is one
    assert list(found.state) == list(state)
    for name, tensor in found.state.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)
        moves = name in how.get("trains", state)
        assert float((tensor - state[name]).abs().max()) > 0.02 if moves else torch.equal(tensor, state[name])


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_part_of_a_schedule_has_the_rates_of_its_place_in_the_whole(schedule, monkeypatch):
    """`before` and `of`: three rounds of four steps in a schedule of twelve, of which the first three warm up."""
    rates, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda own: (rates.append(own.param_groups[0]["lr"]), step(own)))
    recipe = Recipe(lr=0.04, batch_size=4, schedule=schedule, warmup=0.25)
    for t in range(3):
        trained(a_state(), recipe, steps=4, before=4 * t, of=12)
    falling = [1.0] * 9 if schedule == "constant" else [(12 - s) / 9 for s in range(3, 12)]
    assert rates == pytest.approx([0.04 * factor for factor in (1 / 3, 2 / 3, 1.0, *falling)])
    rates.clear()
    trained(a_state(), recipe, steps=4)
    assert rates == pytest.approx([0.04 * learning_rate(s, 4, 0.25, schedule) for s in range(4)])
    trained(a_state(), recipe, steps=4, before=0, of=4)
    assert rates[4:] == rates[:4]


def test_the_same_call_gives_the_same_bits_and_leaves_its_arguments_alone():
    state, recipe = a_state(), Recipe(lr=0.01, batch_size=3)
    before = {name: tensor.clone() for name, tensor in state.items()}
    one = trained(state, recipe, rotated=("R",))
    torch.manual_seed(99)
    other = trained(state, recipe, rotated=("R",))
    assert one.losses == other.losses and all(torch.equal(one.state[n], other.state[n]) for n in state)
    assert trained(state, recipe, rotated=("R",), seed=2).losses != one.losses
    assert all(torch.equal(state[n], before[n]) and not state[n].requires_grad for n in state)
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in one.state.values())


def test_R_is_orthonormal_after_training_where_it_is_to_be():
    state, recipe = a_state(), Recipe(lr=0.05, batch_size=4)
    kept, free = (trained(state, recipe, rotated=rotated, steps=12).state["R"] for rotated in (("R",), ()))
    assert orthonormality_error(kept) < 1e-5 < 0.1 < orthonormality_error(free)
    assert float((kept - state["R"]).abs().max()) > 0.05


def test_weight_decay_shrinks_what_it_names_by_the_formula_and_never_an_R_that_is_kept_orthonormal():
    state = {f"own.{name}": tensor for name, tensor in a_state().items()}  # named by the last part
    for decayed in (("W", "b"), ("W",), ("b", "R"), ()):
        recipe = Recipe(lr=0.1, weight_decay=0.5, decayed=decayed, warmup=0.0, batch_size=4)
        found = trained(
            state, recipe, lambda indices, phi: 0 * sum(t.sum() for t in phi.values()), rotated=("own.R",), steps=4
        )
        factor = math.prod(1 - 0.1 * share * 0.5 for share in (1, 3 / 4, 2 / 4, 1 / 4))
        assert torch.equal(found.state["own.R"], state["own.R"])
        for name in ("W", "b"):
            expected = factor * state[f"own.{name}"] if name in decayed else state[f"own.{name}"]
            torch.testing.assert_close(found.state[f"own.{name}"], expected, atol=0, rtol=1e-6)


def test_the_loss_is_asked_for_the_batches_of_the_plan_and_every_step_is_reported_once():
    asked, calls = [], []

    def losses_of(indices, phi):
        asked.append(list(indices))
        return squares(indices, phi)

    trained(a_state(), Recipe(batch_size=4), losses_of, steps=5, on_step=lambda: calls.append(len(asked)))
    assert asked == batches(EXAMPLES, 4, 5, seed=5) and calls == [1, 2, 3, 4, 5]
