"""Fed-SB (Singhal et al. 2025): only a small r x r matrix between two frozen factors is trained, sent and averaged.

    y = W x + s B S A x,    S <- mean_k S_k,  exact, since the addition is linear in S; r^2 numbers a module

B and A come from the first step of full fine-tuning (LoRA-SB): G = -sign(gradient) of the frozen weight, U Sigma V^T is
G's best approximation of rank r, B = U, A = V^T, S = Sigma eta / s. The published script uses the gradient of the
pooled training set. Here the mean of the clients' gradients replaces it, which a federation can compute. AdamW's first
step has this sign, and eta is its learning rate there. Over LoReFT see lora.SmallLoReFT.
"""

from collections.abc import Sequence

import torch

from ..config import RunConfig
from ..core.state import Layout, State
from ..core.training import learning_rate
from ..model.encoding import Client
from ..model.linears import as_linear
from ..model.steered import SteeredModel
from .lora import LoRA, SmallLoRA, SmallLoReFT
from .method import Method, Phase, ending, weighted_mean

SAMPLE = 64  # training items of each client for the gradient; the paper: some 50 to 550


def small(kind, config: RunConfig):
    return SmallLoRA(kind.scale) if isinstance(kind, LoRA) else SmallLoReFT()


def weight_gradients(model: SteeredModel, config: RunConfig, state: State, client: Client) -> State:
    """The gradient (L, d_out, d_in) of each linear module, in float32: of the loss of a client's first SAMPLE items.

    {} for LoReFT and for a random start, which need no data.
    """
    if config.intervention != "lora" or config.init == "random":
        return {}
    data = client.train.subset(range(min(SAMPLE, len(client.train))))
    linears = {name: place.modules(model.backbone.layers) for name, place in model.adapter.linears.items()}
    found: State = {}
    frozen = [module.weight for modules in linears.values() for module in modules]
    try:
        for weight in frozen:
            weight.requires_grad_()
        for first in range(0, len(data), config.batch_size):
            indices = range(first, min(first + config.batch_size, len(data)))
            loss = data.losses(model, indices, state).sum()  # S is zero: the untrained backbone
            # In a mixture of experts, an expert without tokens has a gradient of zero.
            gradients = iter(torch.autograd.grad(loss, frozen, allow_unused=True, materialize_grads=True))
            for name, modules in linears.items():
                stacked = torch.stack([as_linear(module, next(gradients)).float().cpu() for module in modules])
                found[name] = found.get(name, 0) + stacked
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return found


def from_first_step(layout: Layout, config: RunConfig, state: State, statistics: Sequence[State], steps: int) -> State:
    """B, A and S from the clients' mean gradient of the frozen weights. steps: the most that one takes in a round."""
    eta = config.lr * learning_rate(*config.schedule_part(steps, 1), config.warmup, config.schedule)
    after = dict(state)
    for name in statistics[0]:
        gradient = sum(each[name] / len(statistics) for each in statistics)
        U, sigma, Vh = torch.linalg.svd(-eta * gradient.sign(), full_matrices=False)
        r = layout.adapter.rank
        after[f"{name}.B"], after[f"{name}.A"] = U[..., :r].contiguous(), Vh[..., :r, :].contiguous()
        after[f"{name}.S"] = torch.diag_embed(sigma[..., :r]) / layout.kind.scale
    return after


FEDSB = Method(
    "fedsb",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    state_kind=small,
    phases=lambda names, kind, config, t: [Phase(ending(names, *kind.map))],
    sends=lambda names, kind, config: ending(names, *kind.map),
    client_statistics=weight_gradients,
    initial_state=from_first_step,
)
