"""Sites: where interventions act, and how they get there.

A site is a (layer, position group); the same intervention tensors serve all positions of a site. Positions are the
first p and the last s tokens of the *prompt* (ReFT paper, section 4): "f7+l7". A prompt of n < p + s tokens takes
p <- min(p, floor(n / 2)) and s <- min(s, ceil(n / 2)), so no token is edited twice.

The model itself is not changed: `intervene` puts plain forward hooks on the transformer blocks for one forward
pass and takes them away again.
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
    """Which (layer, position group) pairs carry an intervention, in the order in which states stack them.

    Tied, or with only one of prefix and suffix, a layer has one site; untied it has two. All prefix sites come
    before all suffix sites, as in pyreft.
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
        """The place of a site in the stacked tensors."""
        return self.groups.index(group) * len(self.layers) + self.layers.index(layer)

    def positions(self, lengths: Tensor, starts: Tensor, shape: tuple[int, int]) -> "Positions":
        """Where each group acts in a batch.

        lengths (B,): tokens in each prompt. starts (B,): where each prompt begins, not 0 in left-padded batches.
        shape: (B, T) of the padded batch.
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
    """first[i], first[i] + 1, ... (count[i] of them), for all i in one flat vector."""
    offset = torch.arange(most, device=first.device)
    return (first[:, None] + offset)[offset < count[:, None]]


@dataclass(frozen=True)
class Positions:
    """Positions of one batch: for each group, flat indices into its (B * T) tokens, and the row of each."""

    shape: tuple[int, int]
    indices: dict[str, Tensor]
    rows: dict[str, Tensor]


class Intervention(Protocol):
    """What `intervene` needs of an intervention."""

    def edit(self, h: Tensor, phi: State) -> Tensor:
        """Phi(h) for h (m, d) and the tensors of one site."""


Edit = Callable[[Tensor, int, str], Tensor]  # hidden states (m, d), the place of their site, its group -> (m, d)


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
    """Within this context, the next forward pass over the batch of `positions` is steered by `state`.

    `layers` are the model's transformer blocks, numbered as in `sites`. dropout: see `edited`.
    """
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
    """Within this context, the next forward pass has its hidden states at `positions` replaced by what `edit` says.

    Each hook acts once: when a model generates with a cache, the prompt is edited as it is read and the tokens that
    follow are left alone. dropout: on the edited hidden states, as in pyreft; for training only.
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
    """The tensors of each place: (S, ...) -> S times (...); with dim=1, (K, S, ...) -> S times (K, ...)."""
    # One differentiable take-apart of the stacked tensors: S selects would each build a gradient of full size.
    parts = zip(*(tensor.unbind(dim) for tensor in state.values()), strict=True)
    return [dict(zip(state, each, strict=True)) for each in parts]
