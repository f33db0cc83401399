"""benchmark="agreement": the texts that could be dealt, read once for all federations of a backbone."""

import functools

from ..config import RunConfig
from ..core.interventions import INTERVENTIONS
from ..core.sites import Sites
from ..data.agreement import Text
from ..model.adapters import AtSites
from ..model.backbone import Backbone
from ..model.heads import Head
from ..model.reader import Pool, Reader
from ..model.steered import SteeredModel


def first_site(backbone: Backbone, below: int | None, head: Head | None = None) -> SteeredModel:
    """The backbone with any adapter whose first site is after block `below`."""
    sites = Sites((below or 0,), 1, 0)
    return SteeredModel(backbone, AtSites(INTERVENTIONS["loreft"], sites, 1, backbone.hidden_size), head)


def read_as(config: RunConfig) -> RunConfig:
    """A config with all that the reading of texts depends on, equal for all runs that read them alike."""
    how = {name: getattr(config, name) for name in ("backbone", "prompt_format", "max_length")}
    return RunConfig(benchmark="agreement", **how)


@functools.lru_cache(maxsize=2)  # labels need one block's hidden states, training perhaps another's
def pool_of(backbone: Backbone, below: int | None, config: RunConfig, texts: tuple[Text, ...]) -> Pool:
    """The texts encoded, with the outputs of block `below` (None: without). config: from `read_as`."""
    reader = Reader(first_site(backbone, below), config, caches=below is not None)
    return reader.pooled([text.labelled(False) for text in texts])
