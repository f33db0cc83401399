"""Sites: where interventions act, and how they get there.

A site is a (layer, position group); the same intervention tensors serve all positions of a site. Positions are the
first p and the last s tokens of the *prompt* (ReFT paper, section 4): "f7+l7". A prompt of n < p + s tokens takes
p <- min(p, floor(n / 2)) and s <- min(s, ceil(n / 2)), so no token is edited twice.

The model itself is not changed: `intervene` puts plain forward hooks on the transformer blocks for one forward
pass and takes them away again.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .interventions import State
from .owners import Lines


def parse_positions(text: str) -> tuple[int, int]:
    """ "f7+l7" -> (7, 7), "f3" -> (3, 0), "l1" -> (0, 1): pyreft's notation. Raises ConfigError."""
    found = re.fullmatch(r"(?:f(\d+))?\+?(?:l(\d+))?", text)
    prefix, suffix = (int(n or 0) for n in found.groups()) if found else (0, 0)
    if prefix + suffix == 0:
        raise ConfigError(f'positions must read like "f7+l7", "f3" or "l1", got {text!r}')
    return prefix, suffix


def parse_layers(layers: str | Sequence[int], n_layers: int) -> tuple[int, ...]:
    """ "all", "20-29" (both ends included) or a list of block numbers -> block numbers. Raises ConfigError."""
    if layers == "all":
        return tuple(range(n_layers))
    if isinstance(layers, str):
        found = re.fullmatch(r"(\d+)-(\d+)", layers)
        if not found:
            raise ConfigError(f'layers must be "all", a range like "20-29" or a list of numbers, got {layers!r}')
        layers = range(int(found[1]), int(found[2]) + 1)
    chosen = tuple(layers)
    if not chosen or min(chosen) < 0 or max(chosen) >= n_layers or list(chosen) != sorted(set(chosen)):
        raise ConfigError(f"layers must be increasing numbers from 0 to {n_layers - 1}, got {list(chosen)}")
    return chosen


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

    def among(self, numbers: Tensor, tokens: int) -> "Positions":
        """The same positions in a packed batch of so many tokens; numbers (B * T,): see `Batch`."""
        return Positions((1, tokens), {group: numbers[index] for group, index in self.indices.items()}, self.rows)


class Edits(Protocol):
    """What `intervene` needs of an intervention."""

    def edit(self, h: Tensor, phi: State) -> Tensor:
        """Phi(h) for h (K, m, d) and the tensors of one site in K states."""


@contextmanager
def intervene(
    layers: Sequence[nn.Module],
    intervention: Edits,
    state: State,
    sites: Sites,
    positions: Positions,
    *,
    share: Tensor | None = None,
    owners: Tensor | None = None,
    dropout: float = 0.0,
) -> Iterator[None]:
    """Within this context, the next forward pass over the batch of `positions` is steered by `state`.

    Each hook acts once: when a model generates with a cache, the prompt is steered as it is read and the tokens
    that follow are left alone. `layers` are the model's transformer blocks, numbered as in `sites`.

    share (B,): for interventions of two branches, each row's share of the local one, passed on as phi["share"].
    owners (B,): each row's state, where the tensors of `state` are those of K states, (K, S, ...).
    dropout: on the edited hidden states, as in pyreft; for training only.
    """
    if owners is None:  # one state, the first of one
        state = {name: tensor.unsqueeze(0) for name, tensor in state.items()}
    per_site, states = unstacked(state, 1), len(next(iter(state.values())))
    own = {group: torch.zeros_like(row) if owners is None else owners[row] for group, row in positions.rows.items()}
    lines = {group: Lines(each, states) for group, each in own.items()}
    if share is not None:
        shares = {group: lines[group].lined_up(share[row, None]) for group, row in positions.rows.items()}

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
            edited = []
            for group, index in positions.indices.items():
                phi = per_site[sites.index(layer, group)]
                if share is not None:
                    phi = {**phi, "share": shares[group]}
                each = intervention.edit(lines[group].lined_up(flat.index_select(0, index)), phi)  # (K, m, d)
                edited.append(lines[group].taken_back(each))
            written = nn.functional.dropout(torch.cat(edited), dropout, training=dropout > 0)
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
