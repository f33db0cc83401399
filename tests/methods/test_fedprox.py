"""FedProx: FedAvg whose clients are held near where they started the round."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.core.training import batches
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import train_client as train
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.model.adapters import InLinears
from fedreft_lib.model.steered import SteeredModel
from tests.helpers.federations import small, some_answers
from tests.helpers.models import random_backbone

TWO = {"clients": 2, "tasks": ("piqa", "siqa")}
BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])


@BOTH
def test_with_mu_zero_it_is_fedavg_to_the_bit(intervention):
    fields = {"intervention": intervention, "rounds": 2}
    prox = run(small(method="fedprox", proximal_mu=0.0, **fields), progress=False)
    avg = run(small(method="fedavg", **fields), progress=False)
    assert torch.equal(prox.states, avg.states)
    assert prox.accuracy().tolist() == avg.accuracy().tolist()
    held = run(small(method="fedprox", proximal_mu=10.0, **fields), progress=False)
    assert not torch.equal(held.states, avg.states)


@BOTH
def test_the_larger_mu_the_nearer_clients_stay_to_the_start_of_the_round(intervention, learned):
    moved = []
    for mu in (0.0, 1.0, 1e4):
        config = small(method="fedprox", intervention=intervention, proximal_mu=mu, local_steps=12, **TWO)
        federation = assemble(config)
        X = start(federation, config)
        moved.append(float((learned(federation, config, X, 2) - X).norm()))
    assert moved[2] < moved[1] < moved[0] and moved[2] < 0.1 * moved[0]


@BOTH
def test_each_round_is_held_near_its_own_start(intervention, learned):
    config = small(method="fedprox", intervention=intervention, proximal_mu=1e4, local_steps=12, **TWO)
    federation = assemble(config)
    away = start(federation, config) + 0.1
    if intervention == "loreft":
        away, _ = federated_round(
            federation, config.but(method="local", local_steps=1, lr=1e-9), away, 1
        )  # R orthonormal
    moved = learned(federation, config, away, 2) - away
    assert float(moved.norm()) < 0.1 * float((away - start(federation, config)).norm())


def test_the_penalty_pulls_with_mu_times_the_distance_and_the_loss_that_is_shown_is_without_it():
    backbone = random_backbone()
    model = SteeredModel(backbone, InLinears.of(backbone, LoRA(2.0), (0, 2), 2, ("q_proj", "v_proj")))
    origin, data = model.start("random", 1), some_answers()
    config = small(intervention="lora", lr=0.05, clip=1e9, warmup=0.0, schedule="constant")
    found = train(model, origin, data, config, steps=5, seed=3, proximal=20.0)

    phi = {name: tensor.clone().requires_grad_() for name, tensor in origin.items()}
    optimiser, losses, pulls = torch.optim.AdamW(phi.values(), lr=0.05, weight_decay=0.0), [], []
    for indices in batches(len(data), 4, 5, seed=3):
        loss = -model.answer_logprobs(model.batch([data.sequences[i] for i in indices]), phi)[0].mean()
        gradients = torch.autograd.grad(loss, list(phi.values()))
        for (name, tensor), gradient in zip(phi.items(), gradients, strict=True):
            pull = 20.0 * (tensor.detach() - origin[name])
            tensor.grad = gradient + pull
            pulls.append(float(pull.norm() / gradient.norm()))
        optimiser.step()
        losses.append(float(loss.detach()))
    assert max(pulls) > 0.3  # it counts
    assert found.losses == pytest.approx(losses, abs=1e-4)
    for name, tensor in phi.items():
        torch.testing.assert_close(found.state[name], tensor.detach(), atol=2e-4, rtol=1e-3)
