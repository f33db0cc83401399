"""FedDPA (Yang et al. 2024): a global state, averaged, and a local one that never leaves; their edits are blended.

FedDPA-T: from the second round on, each round first trains the local branch with the global one frozen beside it, in
the shares a and 1 - a, then the global branch alone, which is sent and averaged with equal weights. The round's steps
are divided evenly, so that it does as much work as the other methods.

At test time each item has its own share w = w_max times its mean cosine to five of the client's training items
(last token of the prompt, last layer, local branch): weighting="instance" gives w to the local branch, as the
paper's words intend, "instance_reversed" to the global one, as its published script does; "fixed" is a. Over LoReFT:
reconstruction.
"""

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..model.encoding import Client, Encoded
from ..model.steered import SteeredModel
from ..model.tokens import by_length
from ..seeds import derive
from .branches import Blend
from .method import Method, Phase, of_branch, plain_mean

NEIGHBOURS = 5  # training items that a test item is compared with


def two_phases(names, kind, config: RunConfig, t: int) -> list[Phase]:
    """The local branch beside the global one, then the global one alone; the first round has only the latter."""
    alone = Phase(of_branch(names, "global"), share=0.0)
    return [alone] if t == 1 else [Phase(of_branch(names, "local")), alone]


def similarity(model: SteeredModel, config: RunConfig, state: State, client: Client, part: Encoded) -> Tensor | None:
    """The local branch's share (items,) in each test item; None where all have the same."""
    if config.dpa_weighting == "fixed":
        return None
    generator = torch.Generator().manual_seed(derive(config.seed, "neighbours", client.name))
    neighbours = client.train.subset(torch.randperm(len(client.train), generator=generator)[:NEIGHBOURS].tolist())
    near, here = (embeddings(model, config, state, each) for each in (neighbours, part))
    cosine = torch.nn.functional.cosine_similarity(here[:, None], near[None], dim=-1).mean(1)
    share = (config.dpa_w_max * cosine).clamp(0, 1)
    return share if config.dpa_weighting == "instance" else 1 - share


@torch.no_grad()
def embeddings(model: SteeredModel, config: RunConfig, state: State, data: Encoded) -> Tensor:
    """Last hidden state (items, d) of each prompt's last token (an encoder's first), under the local branch alone."""
    found = torch.empty(len(data), model.backbone.hidden_size)
    for indices in by_length(data.sequences, 2 * config.batch_size):
        batch = data.batch(model, indices, share=1.0)
        hidden = model.hidden_states(batch, state)
        at = torch.zeros_like(batch.prompt_lengths) if model.head else batch.prompt_lengths - 1
        found[indices] = hidden[batch.firsts, at[batch.firsts]].float().cpu()
    return found


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
