"""Local training of many clients in one pass: one forward and one backward pass for all their batches.

Each row of the batch is steered by its own client's state. The frozen model computes rows independently, the objective
is the sum of the clients' mean losses, AdamW works number by number, and gradients are clipped client by client. Each
client therefore takes the same steps as by itself.

On a CPU they are the same to the bit, in float32 and bfloat16, if a row of a product does not depend on the number of
other rows. MKL and oneDNN ensure that from eight or twelve rows on. The code here does the rest: clients share only the
products with frozen weights, whose rows are tokens. Each client attends in its own grids (packed_attention.py), and has
its own sums over positions (owners.py) and its own gradient norm.

Exceptions are products with one or two columns (rank 1, FedALT's router), stacked additions (FLoRA) and batches of
fewer than twelve tokens: there the last bits differ. Where a gradient is zero up to rounding, AdamW can make that
difference as large as a step.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...core.state import State
from ...core.training import Penalty, Recipe, Trained, batches, optimise
from ..encoding import AnswerSet, LabelSet
from ..steered import SteeredModel


def train_together(
    model: SteeredModel,
    states: Sequence[State],
    datas: Sequence[AnswerSet | LabelSet],
    recipe: Recipe,
    *,
    steps: int,
    seeds: Sequence[int],
    before: int = 0,
    of: int | None = None,
    trains: Sequence[str] | None = None,
    share: float | None = None,
    penalty: Penalty | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> list[Trained]:
    """`core.training.train` for each client's state, data and seed; without dropout, whose draws would differ.

    `Trained.seconds` is the total time, divided by the number of clients.
    """
    began = time.perf_counter()
    data = type(datas[0]).join(datas)
    plans, first = [], 0
    for own, seed in zip(datas, seeds, strict=True):
        chosen = batches(len(own), recipe.batch_size, steps, seed)
        plans.append([[first + i for i in indices] for indices in chosen])
        first += len(own)

    def loss_at(step: int, phi: State) -> Tensor:
        parts = [plan[step] for plan in plans]
        owners = torch.tensor([k for k, part in enumerate(parts) for _ in part], device=model.backbone.device)
        losses = data.losses(model, [i for part in parts for i in part], phi, share=share, owners=owners)
        sizes = [sum(map(data.losses_in, part)) for part in parts]
        return torch.stack([own.mean() for own in losses.split(sizes)])  # (K,)

    def everybodys_step() -> None:
        for _ in states:
            on_step()

    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    trained, losses = optimise(
        stacked, loss_at, recipe, steps=steps, before=before, of=of, rotated=model.layout.rotated, trains=trains,
        penalty=penalty, device=model.backbone.device, on_step=everybodys_step, clip=clip_each,
    )  # fmt: skip
    each = torch.stack(losses, 1).tolist()
    seconds = (time.perf_counter() - began) / len(states)
    return [
        Trained({name: tensor[k].clone() for name, tensor in trained.items()}, each[k], seconds)
        for k in range(len(states))
    ]


def clip_each(tensors: Sequence[Tensor], largest: float) -> None:
    """`clip_grad_norm_` for each k separately, over the k-th slices of the gradients of tensors (K, ...)."""
    each = zip(*(tensor.grad.unbind() for tensor in tensors), strict=True)
    norms = torch.stack([nn.utils.get_total_norm(own) for own in each])  # (K,)
    factor = (largest / (norms + 1e-6)).clamp(max=1.0)
    for tensor in tensors:
        tensor.grad *= factor.view(-1, *[1] * (tensor.dim() - 1))
