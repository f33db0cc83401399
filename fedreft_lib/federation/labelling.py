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
from ..core.interventions import INTERVENTIONS
from ..core.sites import Sites
from ..data import agreement
from ..data.agreement import Text
from ..data.partition import SPLITS, ClientData
from ..errors import ConfigError
from ..model.adapters import AtSites
from ..model.backbone import Backbone
from ..model.fast.hidden_cache import HiddenCache
from ..model.reader import Reader
from ..model.shared import shared_backbone
from ..model.steered import SteeredModel


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


def read_as(config: RunConfig) -> RunConfig:
    """A config with all that the reading of texts depends on, equal for all runs that read them alike."""
    how = {name: getattr(config, name) for name in ("backbone", "prompt_format", "max_length")}
    return RunConfig(benchmark="agreement", **how)


@functools.lru_cache(maxsize=2)
def _seen(backbone: Backbone, config: RunConfig, texts: tuple[Text, ...]) -> np.ndarray:
    sites = Sites((max(backbone.n_layers - 2, 0),), prefix=0, suffix=1)
    model = SteeredModel(backbone, AtSites(INTERVENTIONS["loreft"], sites, 1, backbone.hidden_size))
    if not model.can_start_in_the_middle:
        raise ConfigError(
            f'benchmark="agreement" labels texts by a hidden state of a decoder like LLaMA with three blocks or more, '
            f"and {backbone.name} is none"
        )
    questions = [text.labelled(False) for text in texts]
    sequences = Reader(model, config, caches=False).choices(questions).sequences
    # Prompts alone can be read in all ways (ways.py), and no option changes their hidden states.
    hidden = HiddenCache(model).states(sequences) or model.hidden_below([s.bare for s in sequences])
    last = [h[s.prompt_length - 1] for s, h in zip(sequences, hidden, strict=True)]
    return agreement.components(torch.stack(last).double().cpu().numpy())
