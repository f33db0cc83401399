"""Local training does what its description says: AdamW, its schedule, clipping, and an R that stays orthonormal."""

import math

import pytest
import torch

from fedreft_lib import RunConfig
from fedreft_lib.core.interventions import INTERVENTIONS, DiReFT, LoReFT
from fedreft_lib.core.rotation import Rotation, orthonormality_error
from fedreft_lib.core.training import batches, learning_rate
from fedreft_lib.federation.training import train_client as train
from tests.helpers.federations import some_answers
from tests.helpers.models import random_backbone, random_state, steered


@pytest.fixture(scope="module")
def backbone():
    return random_backbone()


def written_out(model, state, data, config, steps, seed):
    """Training as its description says it, with AdamW's formulas (Loshchilov and Hutter 2019) and torch's autograd."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    rotation = Rotation(state["R"]) if model.adapter.kind.orthonormal else None
    free = {name: tensor.clone() for name, tensor in state.items()}
    if rotation:
        free["R"] = rotation.start()
    first = {name: torch.zeros_like(tensor) for name, tensor in free.items()}
    second = {name: torch.zeros_like(tensor) for name, tensor in free.items()}
    losses, norms = [], []
    for step, indices in enumerate(batches(len(data), config.batch_size, steps, seed), start=1):
        free = {name: tensor.requires_grad_() for name, tensor in free.items()}
        phi = {**free, "R": rotation(free["R"])} if rotation else free
        chosen = [data.sequences[i] for i in indices]
        loss = -model.answer_logprobs(model.batch(chosen), phi)[0].mean()
        grads = dict(zip(free, torch.autograd.grad(loss, list(free.values())), strict=True))
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads.values()))
        lr = config.lr * learning_rate(step - 1, steps, config.warmup, config.schedule)
        moved = {}
        for name, p in free.items():
            g = grads[name] * min(1.0, config.clip / (norm + 1e-6))
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g * g
            decay = config.weight_decay if name in config.decayed and name != "R" else 0.0
            m, v = first[name] / (1 - beta1**step), second[name] / (1 - beta2**step)
            moved[name] = (p * (1 - lr * decay) - lr * m / (v.sqrt() + eps)).detach()
        free = moved
        losses.append(float(loss.detach()))
        norms.append(norm)
    return ({**free, "R": rotation(free["R"])} if rotation else free), losses, norms


@pytest.mark.parametrize(("intervention", "clip"), [(LoReFT, 4.0), (DiReFT, 0.8)], ids=["loreft", "direft"])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_training_is_the_loop_written_out(backbone, intervention, clip, schedule):
    model = steered(backbone, intervention, layers=(0, 1))
    state, data = random_state(model), some_answers()
    config = RunConfig(lr=0.01, batch_size=4, clip=clip, weight_decay=0.3, warmup=0.3, schedule=schedule)
    trained = train(model, state, data, config, steps=8, seed=5)
    expected, losses, norms = written_out(model, state, data, config, steps=8, seed=5)
    assert min(norms) < config.clip < max(norms)  # some steps are clipped and some are not
    assert trained.losses == pytest.approx(losses, abs=1e-4)
    assert list(trained.state) == list(state)
    for name, tensor in trained.state.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-4)
        assert float((tensor - state[name]).abs().max()) > 0.01


def test_the_same_call_gives_the_same_bits_and_leaves_its_arguments_alone(backbone):
    model = steered(backbone, LoReFT)
    state, data, config = random_state(model), some_answers(), RunConfig(lr=0.01, batch_size=3)
    before = {name: tensor.clone() for name, tensor in state.items()}
    weights = [parameter.clone() for parameter in backbone.model.parameters()]
    one = train(model, state, data, config, steps=4, seed=1)
    torch.manual_seed(99)
    other = train(model, state, data, config, steps=4, seed=1)
    assert one.losses == other.losses and all(torch.equal(one.state[n], other.state[n]) for n in state)
    assert train(model, state, data, config, steps=4, seed=2).losses != one.losses
    assert all(torch.equal(state[n], before[n]) and not state[n].requires_grad for n in state)
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in one.state.values())
    for parameter, old in zip(backbone.model.parameters(), weights, strict=True):
        assert torch.equal(parameter, old) and parameter.grad is None


@pytest.mark.parametrize("name", [name for name, each in INTERVENTIONS.items() if each.orthonormal])
def test_R_is_orthonormal_after_training(backbone, name):
    model = steered(backbone, INTERVENTIONS[name], layers=(0, 1))
    state = random_state(model)
    trained = train(model, state, some_answers(), RunConfig(lr=0.05, batch_size=4), steps=12, seed=0).state
    assert orthonormality_error(trained["R"]) < 1e-5
    assert float((trained["R"] - state["R"]).abs().max()) > 0.05


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_the_loss_falls(backbone, name):
    model = steered(backbone, INTERVENTIONS[name], layers=(0, 1), prefix=3, suffix=3)
    config = RunConfig(lr=0.02, batch_size=10, schedule="constant")
    losses = train(model, random_state(model), some_answers(), config, steps=25, seed=0).losses
    assert losses[-1] < losses[0] - 0.5


def test_weight_decay_shrinks_W_and_b_by_the_formula_and_never_touches_R(backbone):
    # The prefix of the last block changes nothing that is scored, so gradients are zero and decay acts alone.
    model = steered(backbone, LoReFT, layers=(2,), prefix=2, suffix=0)
    state = random_state(model)
    for decayed in (["W", "b"], ["W"], ["b"], []):
        config = RunConfig(lr=0.1, weight_decay=0.5, decayed=decayed, warmup=0.0, batch_size=4)
        trained = train(model, state, some_answers(), config, steps=4, seed=0).state
        factor = math.prod(1 - 0.1 * share * 0.5 for share in (1, 3 / 4, 2 / 4, 1 / 4))
        assert torch.equal(trained["R"], state["R"])
        for name in ("W", "b"):
            expected = factor * state[name] if name in decayed else state[name]
            torch.testing.assert_close(trained[name], expected, atol=0, rtol=1e-6)


def test_every_step_is_reported_once(backbone):
    model, calls = steered(backbone, LoReFT), []
    config = RunConfig(batch_size=4)
    train(model, random_state(model), some_answers(), config, steps=5, seed=0, on_step=lambda: calls.append(1))
    assert len(calls) == 5
