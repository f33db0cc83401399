"""Lorar (Zhang et al., ACL 2023, arXiv 2305.17221): a client counts by how much its loss fell in the round.

    w_k = n_k dL_k / sum_j n_j dL_j,    dL_k = max - min of the losses that client k logged in the round

n_k: its examples. lorar_counts=False leaves n_k out. lorar_gain="range" is the published script's dL; here each step is
logged, there every fourth. It is no reduction: it is as large where the loss rises, and noise alone makes it grow with
the number of steps, so it favours clients with many. "exact" (ours) is the mean loss of the client's training items
before minus after, at least 0. Where no loss fell, the base's weights stay.

Clients report dL_k themselves, and a false one can buy any weight. The paper has it over FedAvg, FedOPT and FedProx;
over LoReFT nothing differs but the retraction of R.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import Layout, State
from ..core.training import Trained
from ..model import scoring
from ..model.encoding import Client
from ..model.steered import SteeredModel
from .fedavg import FEDAVG
from .method import TOLD, Method, Sent

REDUCTION = f"{TOLD}reduction"  # dL_k


def loss_guided(weights: Tensor, reductions: Tensor, counts: bool) -> Tensor:
    """Weights (N,), up to a factor, from the base's and the reductions (N,); a negative one counts as 0."""
    each = weights if counts else (weights > 0).to(weights)
    found = each.double() * reductions.double().clamp_min(0)
    return (found / found.max()).to(weights) if bool(found.any()) else weights


def lorar(base: Method) -> Method:
    """`base`, whose clients count by the reductions of their losses."""

    def extras(layout: Layout, config: RunConfig) -> State:
        return {**base.extras(layout, config), REDUCTION: torch.zeros(())}

    def after(
        model: SteeredModel, config: RunConfig, before: State, trained: Trained, prepared: State, client: Client, t: int
    ) -> State:
        if config.lorar_gain == "range":
            reduction = max(trained.losses) - min(trained.losses)
        else:
            first, last = (
                scoring.loss(model, state, client.train, config.batch_size) for state in (before, trained.state)
            )
            reduction = first - last
        told = {REDUCTION: torch.tensor(reduction).clamp_min(0)}
        return {**base.after(model, config, before, trained, prepared, client, t), **told}

    def weigh(sent: Sent) -> Tensor:
        return loss_guided(base.weigh(sent), sent.told[REDUCTION], sent.config.lorar_counts)

    return replace(base, name="lorar", extras=extras, after=after, weigh=weigh)


LORAR = lorar(FEDAVG)
