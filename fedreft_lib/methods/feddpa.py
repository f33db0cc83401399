"""FedDPA (Yang et al. 2024): blends a global branch, which is averaged, with a local branch, which is never sent.

FedDPA-T: each round first trains the local branch together with the frozen global one, in the shares a and 1 - a. Then
it trains the global branch by itself, which is sent and averaged with equal weights. Round 1 trains only the global
branch. The two phases share the round's steps evenly, so the method does as much work as the others.

In tests each item has its own share w: w_max times its mean cosine to five of the client's training items (last token
of the prompt, last layer, local branch). dpa_weighting="instance" gives w to the local branch, as the paper's text
intends; "instance_reversed" gives it to the global one, as the published script does; "fixed" uses a. Over LoReFT:
reconstruction.
"""

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..model.encoding import Client, Encoded
from ..model.steered import SteeredModel
from ..seeds import derive
from .branches import Blend
from .embeddings import embeddings
from .method import Method, Phase, of_branch, plain_mean

NEIGHBOURS = 5  # training items to compare a test item with


def two_phases(names, kind, config: RunConfig, t: int) -> list[Phase]:
    """The local branch with the frozen global one, then the global one by itself. Round 1 has only the second phase."""
    alone = Phase(of_branch(names, "global"), share=0.0)
    return [alone] if t == 1 else [Phase(of_branch(names, "local")), alone]


def similarity(model: SteeredModel, config: RunConfig, state: State, client: Client, part: Encoded) -> Tensor | None:
    """The local branch's share (items,) in each test item; None where all items have the same share."""
    if config.dpa_weighting == "fixed":
        return None
    generator = torch.Generator().manual_seed(derive(config.seed, "neighbours", client.name))
    neighbours = client.train.subset(torch.randperm(len(client.train), generator=generator)[:NEIGHBOURS].tolist())
    # with the local branch only
    near, here = (embeddings(model, config, state, each, share=1.0) for each in (neighbours, part))
    cosine = torch.nn.functional.cosine_similarity(here[:, None], near[None], dim=-1).mean(1)
    share = (config.dpa_w_max * cosine).clamp(0, 1)
    return share if config.dpa_weighting == "instance" else 1 - share


FEDDPA = Method(
    "feddpa",
    aggregate=plain_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    state_kind=lambda kind, config: Blend(kind, config.dpa_share),
    phases=two_phases,
    sends=lambda names, kind, config: of_branch(names, "global"),
    test_share=similarity,
)
