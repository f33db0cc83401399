"""Embeddings: what the model makes of a prompt, by which some methods compare items."""

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..model.encoding import Encoded
from ..model.steered import SteeredModel
from ..model.tokens import by_length


@torch.no_grad()
def embeddings(
    model: SteeredModel, config: RunConfig, state: State | None, data: Encoded, share: float | None = None
) -> Tensor:
    """Last hidden state (items, d) of each prompt's last token (an encoder's first).

    state: None for the untrained backbone. share: the local branch's, for states that have one.
    """
    found = torch.empty(len(data), model.backbone.hidden_size)
    for indices in by_length(data.sequences, 2 * config.batch_size):
        batch = data.batch(model, indices, share=share)
        hidden = model.hidden_states(batch, state)
        at = torch.zeros_like(batch.prompt_lengths) if model.head else batch.prompt_lengths - 1
        found[indices] = hidden[batch.firsts, at[batch.firsts]].float().cpu()
    return found
