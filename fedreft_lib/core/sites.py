"""Sites: where interventions act, and how they get there.

A site is a pair (layer, position group). All positions of a site use the same tensors. The positions are the first p
and the last s tokens of the *prompt*, written "f7+l7" (ReFT paper, section 4). A prompt of n < p + s tokens takes
p <- min(p, floor(n / 2)) and s <- min(s, ceil(n / 2)), so no token is edited twice.

The model does not change: `intervene` adds forward hooks to its blocks for one forward pass, then removes them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .state import State


@dataclass(frozen=True)
class Sites:
    """The pairs (layer, position group) that have an intervention, in the order of the stacked tensors.

    A layer has two sites, or one where they are tied or where only a prefix or only a suffix is edited. All prefix
    sites come before all suffix sites, as in pyreft.
    """

    layers: tuple[int, ...]
    prefix: int
    suffix: int
    tied: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        if self.tied and self.prefix and self.suffix:
            return ("tied",)
        return tuple(name for name, n in (("prefix", self.prefix), ("suffix", self.suffix)) if n)

    def __len__(self) -> int:
        return len(self.layers) * len(self.groups)

    def index(self, layer: int, group: str) -> int:
        """The index of a site in the stacked tensors."""
        return self.groups.index(group) * len(self.layers) + self.layers.index(layer)

    def positions(self, lengths: Tensor, starts: Tensor, shape: tuple[int, int]) -> "Positions":
        """The positions of each group in a batch.

        lengths, starts (B,): tokens of each prompt, index of its first (not 0 if left-padded). shape: (B, T), padded.
        """
        p, s = torch.full_like(lengths, self.prefix), torch.full_like(lengths, self.suffix)
        short = lengths < self.prefix + self.suffix
        p = torch.where(short, torch.minimum(p, lengths // 2), p)
        s = torch.where(short, torch.minimum(s, (lengths + 1) // 2), s)
        row = torch.arange(shape[0], device=lengths.device) * shape[1] + starts  # flat index of each first token
        indices = {
            "prefix": _runs(row, p, self.prefix),
            "suffix": _runs(row + lengths - s, s, self.suffix),
        }
        if self.groups == ("tied",):
            indices = {"tied": torch.cat([indices["prefix"], indices["suffix"]])}
        indices = {group: indices[group] for group in self.groups}
        return Positions(tuple(shape), indices, {group: index // shape[1] for group, index in indices.items()})


def _runs(first: Tensor, count: Tensor, most: int) -> Tensor:
    """first[i], first[i] + 1, ... (count[i] numbers), for all i in one flat vector."""
    offset = torch.arange(most, device=first.device)
    return (first[:, None] + offset)[offset < count[:, None]]


@dataclass(frozen=True)
class Positions:
    """The positions of one batch: for each group, flat indices into its B * T tokens, and the row of each index."""

    shape: tuple[int, int]
    indices: dict[str, Tensor]
    rows: dict[str, Tensor]


class Intervention(Protocol):
    """The part of an intervention that `intervene` needs."""

    def edit(self, h: Tensor, phi: State) -> Tensor:
        """Phi(h) for h (m, d) and the tensors of one site."""


Edit = Callable[[Tensor, int, str], Tensor]  # hidden states (m, d), the index of their site, its group -> (m, d)


@contextmanager
def intervene(
    layers: Sequence[nn.Module],
    intervention: Intervention,
    state: State,
    sites: Sites,
    positions: Positions,
    *,
    dropout: float = 0.0,
) -> Iterator[None]:
    """In this context, `state` steers the next forward pass. Arguments as in `edited`."""
    per_site = unstacked(state)
    with edited(layers, lambda h, site, group: intervention.edit(h, per_site[site]), sites, positions, dropout):
        yield


@contextmanager
def edited(
    layers: Sequence[nn.Module] | Mapping[int, nn.Module],
    edit: Edit,
    sites: Sites,
    positions: Positions,
    dropout: float = 0.0,
) -> Iterator[None]:
    """In this context, `edit` replaces the hidden states at `positions` in the next forward pass.

    layers: the model's transformer blocks, numbered as in `sites`. dropout: on the edited hidden states, as in pyreft;
    for training only. Each hook acts once: in generation with a cache, it edits the prompt and no later token. The pass
    raises ValueError for a batch of another shape.
    """

    def hook_for(layer: int):
        acted = False

        def hook(module, args, output):
            nonlocal acted
            if acted:
                return output
            acted = True
            h = output[0] if isinstance(output, tuple) else output
            if tuple(h.shape[:2]) != positions.shape:
                raise ValueError(f"positions are for a batch of {positions.shape}, the model runs {tuple(h.shape[:2])}")
            flat = h.reshape(-1, h.shape[-1])  # (B * T, d)
            each = [
                edit(flat.index_select(0, index), sites.index(layer, group), group)
                for group, index in positions.indices.items()
            ]
            written = nn.functional.dropout(torch.cat(each), dropout, training=dropout > 0)
            flat = flat.index_copy(0, torch.cat(list(positions.indices.values())), written)
            h = flat.view_as(h)
            return (h, *output[1:]) if isinstance(output, tuple) else h  # a tuple up to transformers 4.53

        return hook

    handles = []
    try:
        for layer in sites.layers:
            handles.append(layers[layer].register_forward_hook(hook_for(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def unstacked(state: State, dim: int = 0) -> list[State]:
    """The tensors of each site: (S, ...) -> S times (...); with dim=1, (K, S, ...) -> S times (K, ...)."""
    # One `unbind` for all sites: S separate selects would each build a gradient of full size.
    parts = zip(*(tensor.unbind(dim) for tensor in state.values()), strict=True)
    return [dict(zip(state, each, strict=True)) for each in parts]
