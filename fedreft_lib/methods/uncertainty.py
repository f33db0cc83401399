"""How unsure the model is of an item, o(x): by it FLood weighs items and clients, and FedPPA may weigh clients.

    entropy       of what the model says
    confidence    1 minus its largest probability
    energy        -logsumexp(logits), with a classification head

It is a mean over the answer's tokens; where an item is trained as a choice, it is taken over the choices. A vocabulary
has no energy: a constant added to a token's logits changes it and no probability.
"""

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..errors import ConfigError
from ..model.encoding import ChoiceSet, Encoded, LabelSet
from ..model.fast.token_losses import AT_A_TIME
from ..model.steered import SteeredModel


def unusual(logits: Tensor, how: str) -> Tensor:
    """o (...) for logits (..., options); -inf where there is no option."""
    if how == "energy":
        return -logits.float().logsumexp(-1)
    p = logits.float().softmax(-1)
    return torch.special.entr(p).sum(-1) if how == "entropy" else 1 - p.amax(-1)


@torch.no_grad()
def scores(model: SteeredModel, config: RunConfig, state: State, data: Encoded, how: str) -> Tensor:
    """o of every item, (items,) float64. Raises ConfigError for a regression, which says no probabilities."""
    found = torch.empty(len(data), dtype=torch.float64)
    for indices in data.in_passes(2 * config.batch_size):
        found[indices] = _in_a_batch(model, how, state, data, indices).double().cpu()
    return found


def _in_a_batch(model: SteeredModel, how: str, state: State, data: Encoded, indices: list[int]) -> Tensor:
    if isinstance(data, LabelSet):
        classes = [data.classes[i] for i in indices]
        if not all(classes):
            raise ConfigError("the probabilities of each item are needed, and a regression has none")
        outputs = model.class_logits(data.batch(model, indices), state)
        return torch.stack([unusual(row[:n], how) for row, n in zip(outputs, classes, strict=True)])
    if isinstance(data, ChoiceSet):
        return unusual(data.option_scores(model, indices, state), how)
    batch = data.batch(model, indices)
    row, source, _, item = batch.targets.unbind(1)  # a training item has one answer
    logits = model.logits_at(batch, row * batch.ids.shape[1] + source, state)
    each = torch.cat([unusual(some, how) for some in logits.split(AT_A_TIME)])
    tokens = item.bincount(minlength=len(indices)).clamp_min(1)  # an answer may be cut to nothing
    return each.new_zeros(len(indices)).index_add(0, item, each) / tokens
