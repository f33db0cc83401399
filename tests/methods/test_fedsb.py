"""Fed-SB: between two frozen factors a small matrix is trained; it adds linearly, so its average is exact."""

import copy

import numpy as np
import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods import METHODS
from tests.helpers.federations import small

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
WEIGHTS = torch.tensor([8, 5, 2, 8], dtype=torch.float64) / 23
TRAINED = {"loreft": ("S", "b"), "lora": ("q_proj.S", "v_proj.S")}
TARGETS = ("q_proj", "v_proj")


def fedsb(**fields):
    return small(**{"method": "fedsb", **fields})


def first_step(federation, config):
    """-eta sign(G) of each target's layers, G the mean of the clients' gradients, by autograd on an unfrozen copy."""
    model = copy.deepcopy(federation.model.backbone.model)
    layers = range(*map(int, (config.layers[0], int(config.layers[-1]) + 1)))
    weights = {t: [getattr(model.model.layers[i].self_attn, t).weight for i in layers] for t in TARGETS}
    every = [weight.requires_grad_() for each in weights.values() for weight in each]
    total = [torch.zeros_like(weight, dtype=torch.float64) for weight in every]
    for client in federation.clients:
        for sequence in client.train.sequences:  # fewer than 64, so all of them
            ids = torch.tensor([sequence.ids])
            logits = model(input_ids=ids).logits[0, sequence.prompt_length - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, sequence.prompt_length :], reduction="sum")
            for sum_, gradient in zip(total, torch.autograd.grad(loss, every), strict=True):
                sum_ += gradient.double() / len(federation.clients)
    # AdamW's first step has the size of the learning rate; the rate is still rising in the warm-up.
    eta = config.lr / max(1, int(np.ceil(config.warmup * 2)))
    signs = iter(-eta * gradient.sign() for gradient in total)
    return {t: [next(signs).numpy() for _ in layers] for t in TARGETS}


def test_B_S_A_are_the_best_small_form_of_the_first_step_that_full_training_takes():
    config = fedsb(intervention="lora", rank=3)
    federation = assemble(config)
    state = federation.model.spec.named(start(federation, config)[0])
    steps, scale = first_step(federation, config), config.lora_alpha / 3
    for target in TARGETS:
        for place, step in enumerate(steps[target]):
            B, S, A = (state[f"{target}.{name}"][place].double().numpy() for name in "BSA")
            np.testing.assert_allclose(B.T @ B, np.eye(3), atol=1e-5)
            np.testing.assert_allclose(A @ A.T, np.eye(3), atol=1e-5)
            U, sigma, Vh = np.linalg.svd(step)
            np.testing.assert_allclose(S, np.diag(sigma[:3]) / scale, rtol=1e-3, atol=1e-5)
            best = U[:, :3] * sigma[:3] @ Vh[:3]
            np.testing.assert_allclose(scale * B @ S @ A, best, atol=2e-3 * np.abs(best).max())


def test_with_full_rank_the_start_is_that_step_itself():
    config = fedsb(intervention="lora", rank=32, lora_alpha=8.0, warmup=0.9, schedule_over="round")  # two steps
    federation = assemble(config)
    state = federation.model.spec.named(start(federation, config)[0])
    steps = first_step(federation, config)
    for place, step in enumerate(steps["v_proj"]):  # 32 outputs
        B, S, A = (state[f"v_proj.{name}"][place].double().numpy() for name in "BSA")
        found = 8.0 / 32 * B @ S @ A
        assert np.mean(np.abs(found - step) < 1e-5) > 0.998  # but where a gradient is a rounding error
        assert np.abs(step).max() == pytest.approx(config.lr / 2)


def test_the_gradient_is_taken_without_a_trace_in_the_backbone():
    config = fedsb(intervention="lora")
    federation = assemble(config)
    before = [parameter.clone() for parameter in federation.model.backbone.model.parameters()]
    start(federation, config)
    for parameter, old in zip(federation.model.backbone.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old) and not parameter.requires_grad and parameter.grad is None


@BOTH
def test_a_random_start_asks_for_no_data(intervention):
    config = fedsb(intervention=intervention, init="random")
    model = assemble(config).model
    state = model.start("random", 1)
    known = METHODS["fedsb"].client_statistics(model, config, state, None)  # no client, no data
    assert known == {}
    found = METHODS["fedsb"].initial_state(model.layout, config, state, [known], 2)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@BOTH
def test_what_the_average_adds_is_the_average_of_what_the_clients_add(uneven, learned, intervention):
    config = fedsb(intervention=intervention, lr=0.1)
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    h = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).double()
    total = 0.0
    for t in (1, 2):
        sent = learned(federation, config, X, t)
        X, _ = federated_round(federation, config, X, t)
        assert torch.equal(X, X[:1].expand(4, -1))
        for place in range(4 if intervention == "loreft" else 2):
            for target in ("",) if intervention == "loreft" else ("q_proj.", "v_proj."):

                def added(row, target=target, place=place):
                    phi = {n.removeprefix(target): v[place].double() for n, v in spec.named(row).items() if target in n}
                    if intervention == "loreft":
                        return (h @ phi["V"].T @ phi["S"].T + phi["b"] - h @ phi["R"].T) @ phi["R"]
                    return 8.0 * h @ (phi["B"] @ phi["S"] @ phi["A"]).T

                wanted = sum(p * added(row) for p, row in zip(WEIGHTS, sent, strict=True))
                torch.testing.assert_close(added(X[0]), wanted, atol=1e-5, rtol=1e-5)
                total += float(wanted.norm())
    assert total > 1


@BOTH
def test_the_frozen_factors_stay_and_the_small_matrix_is_trained(intervention):
    config = fedsb(intervention=intervention, rounds=2)
    done = run(config, progress=False)
    begun = done.spec.named(start(assemble(config), config)[0])
    for name, tensor in done.spec.named(done.states[0]).items():
        assert torch.equal(tensor, begun[name]) == (name not in TRAINED[intervention]), name


def test_r_squared_numbers_a_module_are_trained_and_sent_whatever_the_width():
    done = run(fedsb(intervention="lora", rank=5, rounds=1), progress=False)
    assert done.manifest["trainable_params"] == 2 * 2 * 5**2  # two targets in two layers
    assert done.history["uplink_bytes"].sum() == done.history["downlink_bytes"].sum() == 4 * 4 * 2 * 2 * 5**2


def test_over_loreft_it_is_r_squared_plus_r_a_site():
    done = run(fedsb(rank=5, rounds=1), progress=False)
    assert done.manifest["trainable_params"] == 4 * (5**2 + 5)
    assert done.history["uplink_bytes"].sum() == done.history["downlink_bytes"].sum() == 4 * 4 * 4 * (5**2 + 5)
