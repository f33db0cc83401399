"""Local training of one client on its data: what `federation.training` does in a round, and some methods do besides."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..core.training import Trained, train
from .encoding import AnswerSet, ChoiceSet, LabelSet
from .steered import SteeredModel


def train_client(
    model: SteeredModel,
    state: State,
    data: AnswerSet | ChoiceSet | LabelSet,
    config: RunConfig,
    *,
    seed: int,
    share: float | Tensor | None = None,
    weights: Tensor | None = None,
    **how,
) -> Trained:
    """`core.training.train` on one client's data.

    share: the branches', for states that have some, see `model.encoding.rows_share`. weights (items,): how many times
    each item's losses count.
    """

    def losses(indices: Sequence[int], phi: State) -> Tensor:
        found = data.losses(model, indices, phi, share=share, dropout=config.dropout)
        if weights is None:
            return found
        each = weights[list(indices)].repeat_interleave(torch.tensor([data.losses_in(i) for i in indices]))
        return each.to(found) * found

    with torch.random.fork_rng(enabled=config.dropout > 0):
        if config.dropout > 0:
            torch.manual_seed(seed)  # only dropout draws from torch's global generator
        rotated, device = model.layout.rotated, model.backbone.device
        return train(state, losses, len(data), config.recipe, seed=seed, rotated=rotated, device=device, **how)
