"""How mixed a client's answers are: an entropy H in nats, by which it counts in the server's mean.

    labels        - sum_a q_a log q_a,   q_a: the share of answer a among its training items
    predictions   the mean entropy of what the model says at these answers

An answer is a class or the number of the correct option, with its task; else its tokens. H is what a client reports of
itself, and a false one buys weight.
"""

from collections import Counter

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..core.training import Trained
from ..errors import ConfigError
from ..model.encoding import ChoiceSet, Client, Encoded, LabelSet
from ..model.steered import SteeredModel
from .method import TOLD, Sent
from .uncertainty import scores

ENTROPY = f"{TOLD}entropy"  # H
LEAST = 1e-12  # of a weight, so that clients without entropy still count among themselves


def entropy(
    model: SteeredModel, config: RunConfig, before: State, trained: Trained, prepared: State, client: Client, t: int
) -> State:
    """H, after training; 1 for ppa_weights="uniform". Raises ConfigError for a regression."""
    H = torch.ones(())
    if config.ppa_weights == "labels":
        counts = torch.tensor(list(Counter(answers(client.train)).values()))
        H = torch.special.entr(counts / counts.sum()).sum()
    elif config.ppa_weights == "predictions":
        H = scores(model, config, trained.state, client.train, "entropy").mean().float()
    return {ENTROPY: H}


def answers(data: Encoded) -> list[tuple]:
    if isinstance(data, LabelSet) and not all(data.classes):
        raise ConfigError("an entropy of labels counts classes, and a regression has none")
    if isinstance(data, LabelSet | ChoiceSet):
        return list(zip(data.tasks, data.labels if isinstance(data, LabelSet) else data.gold, strict=True))
    return [each.ids[each.prompt_length :] for each in data.sequences]


def by_entropy(sent: Sent) -> Tensor:
    """Weights (N,) up to a factor. A weight of 0 stays."""
    there = (sent.weights > 0).double()
    H = sent.told[ENTROPY].double() * there
    return ((H / H.max().clamp_min(LEAST)).clamp_min(LEAST) * there).to(sent.weights)
