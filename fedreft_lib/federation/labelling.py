"""benchmark="agreement": dealt texts get the labels of the client that they were dealt to, see `data.agreement`.

The labels depend on what the frozen model sees, so this loads it. They are the same for every method, adapter and
intervention of a backbone.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..config import RunConfig
from ..data import agreement
from ..data.agreement import Text
from ..data.partition import SPLITS, ClientData
from ..errors import ConfigError
from ..model.backbone import Backbone
from ..model.reader import Reader
from ..model.shared import shared_backbone
from .pool import first_site, pool_of, read_as


def labelled(clients: Sequence[ClientData], texts: Sequence[Text], config: RunConfig) -> list[ClientData]:
    """The clients with questions in place of their texts. texts: all that could have been dealt."""
    row = {text.uid: i for i, text in enumerate(texts)}
    e, w = seen(texts, config), agreement.rules(config.clients, config.agreement, config.seed)
    y = agreement.labels(e, w)  # (texts, clients)
    return [
        replace(
            client,
            **{split: tuple(text.labelled(y[row[text.uid], k]) for text in getattr(client, split)) for split in SPLITS},
        )
        for k, client in enumerate(clients)
    ]


def seen(texts: Sequence[Text], config: RunConfig) -> np.ndarray:
    """e (texts, 12): `agreement.components` of the hidden states after the last block but one, at the last token."""
    backbone = shared_backbone(config.backbone, config.dtype, config.device)
    return _seen(backbone, read_as(config), tuple(texts))


@functools.lru_cache(maxsize=2)
def _seen(backbone: Backbone, config: RunConfig, texts: tuple[Text, ...]) -> np.ndarray:
    below = max(backbone.n_layers - 2, 0)
    model = first_site(backbone, below)
    if not model.can_start_in_the_middle:
        raise ConfigError(
            f'benchmark="agreement" labels texts by a hidden state of a decoder like LLaMA with three blocks or more, '
            f"and {backbone.name} is none"
        )
    pool = pool_of(backbone, below, config, texts)
    read = Reader(model, config, caches=False, pool=pool).choices([text.labelled(False) for text in texts])
    sequences = read.sequences
    # Prompts alone can be read in all ways (ways.py), and no option changes their hidden states.
    hidden = read.hidden or model.hidden_below([s.bare for s in sequences])
    last = [h[s.prompt_length - 1] for s, h in zip(sequences, hidden, strict=True)]
    return agreement.components(torch.stack(last).double().cpu().numpy())
