"""FedIns (Feng et al., ICCV 2023, arXiv 2308.06051): an item chooses its instances from a pool that all clients share.

    q(x)    the untrained model's embedding of the item     keys k_1 .. k_P, one for each instance of the pool
    top(x)  the k instances with the largest cos(q(x), k_p)          delta(x) = 1/k sum_(p in top(x)) delta_p(x)
    loss    that of the answers, for the instances, and w (1 - sum_(p in top(x)) cos(q(x), k_p)), for the keys

The server takes the plain mean of the instances and of the keys, member by member: all clients start from one pool.
Published over vision transformers: P = 25 pairs of scale and shift, k = 3, w = 0.1 (and 0.9 on the answers' loss),
SGD 0.01, one item a step.

Reductions: an item's choice is fixed for a round, by the keys of its start; then the keys take as many SGD steps as the
instances took steps, on the same batches. The answers' loss keeps the factor 1, which AdamW would not see. A
classification head is no part of the pool. Reconstructions: q is the last token of a prompt (an encoder's first), and
an instance is a state of `intervention`, with R of its own; ins_form="scale" has the published form, at LoReFT's sites.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..config import RunConfig
from ..core.state import Layout, State
from ..core.training import Trained, train
from ..model.encoding import Client, Encoded
from ..model.steered import SteeredModel
from ..seeds import derive
from .embeddings import embeddings
from .method import Method, Phase, plain_mean
from .mixture import Mixture
from .scale import Scale

SPREAD = 0.02  # of the keys' start


def pool(kind, config: RunConfig) -> Mixture:
    return Mixture(Scale() if config.ins_form == "scale" else kind, config.ins_pool)


def keys(layout: Layout, config: RunConfig) -> State:
    """The keys (P, d), one start for all clients."""
    generator = torch.Generator().manual_seed(derive(config.seed, "keys"))
    return {"keys": SPREAD * torch.randn(config.ins_pool, layout.adapter.d, generator=generator)}


def likeness(query: Tensor, keys: Tensor) -> Tensor:
    """Cosines (items, P) of queries (items, d) and keys (P, d)."""
    return cosine_similarity(query[:, None], keys[None], dim=-1)


def gates(cosines: Tensor, k: int) -> Tensor:
    """(items, P): 1 / k for the k largest of each row, the first of equal ones, else 0."""
    chosen = cosines.argsort(dim=-1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(cosines).scatter(-1, chosen, 1 / k)


def choose(model: SteeredModel, config: RunConfig, state: State, client: Client, t: int) -> State:
    query = embeddings(model, config, None, client.train)
    return {"query": query, "gates": gates(likeness(query, state["keys"]), config.ins_top)}


def pull_keys(
    model: SteeredModel, config: RunConfig, before: State, trained: Trained, prepared: State, client: Client, t: int
) -> State:
    """The keys after their steps, on the batches, and in the schedule, of the round."""
    query, chosen = prepared["query"], (prepared["gates"] > 0).float()

    def losses(indices: Sequence[int], phi: State) -> Tensor:
        some = list(indices)
        return config.ins_pull * (1 - (chosen[some] * likeness(query[some], phi["keys"])).sum(-1))

    steps, seed = len(trained.losses), derive(config.seed, "batches", t, client.name)
    done, of = config.schedule_part(steps, t)
    recipe = replace(config.recipe, optimiser="sgd")
    moved = train({"keys": before["keys"]}, losses, len(query), recipe, steps=steps, seed=seed, before=done, of=of)
    return moved.state


def shares(model: SteeredModel, config: RunConfig, state: State, client: Client, part: Encoded) -> Tensor:
    """The gates (items, P) of test items, from the keys as they are."""
    return gates(likeness(embeddings(model, config, None, part), state["keys"]), config.ins_top)


FEDINS = Method(
    "fedins",
    aggregate=plain_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    state_kind=pool,
    phases=lambda names, kind, config, t: [Phase(tuple(names), share="gates")],
    extras=keys,
    prepare=choose,
    after=pull_keys,
    test_share=shares,
)
