"""Rows of several states in one batch: grouped by state, so that one product serves all states, and back.

    rows (n, ...)  -- lined_up -->  lines (K, m, ...)  -- each line with its own state -->  -- taken_back -->  rows

All lines have the length of the longest, rounded up to a multiple of `FULL`. The rest of a line is zeros, not another
row: its gradient is zero, and zero times another client's NaN would be NaN.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ...core.sites import Edit, Intervention, Positions, Sites, unstacked
from ...core.state import State

FULL = 8  # rows: with a multiple of eight rows, a row of a product has the same bits for any number of rows (in MKL)


class Lines:
    """owners (n,): for each row the number of its state, in any order. states: K; some may have no row."""

    def __init__(self, owners: Tensor, states: int):
        sizes = owners.bincount(minlength=states)
        order = owners.argsort(stable=True)
        first = sizes.cumsum(0) - sizes  # of each state's rows, in that order
        within = torch.arange(len(owners), device=owners.device) - first[owners[order]]
        self.shape = (states, -(-int(sizes.max()) // FULL) * FULL if len(owners) else 0)
        self.place = torch.empty_like(owners).index_copy(0, order, owners[order] * self.shape[1] + within)  # (n,)

    def lined_up(self, rows: Tensor) -> Tensor:
        """(n, ...) -> (K, m, ...)"""
        lines = rows.new_zeros(self.shape[0] * self.shape[1], *rows.shape[1:])
        return lines.index_copy(0, self.place, rows).unflatten(0, self.shape)

    def taken_back(self, lines: Tensor) -> Tensor:
        """(K, m, ...) -> (n, ...)"""
        return lines.flatten(0, 1).index_select(0, self.place)


def edit_by_owner(
    kind: Intervention,
    state: State,
    sites: Sites,
    positions: Positions,
    *,
    share: Tensor | None = None,
    owners: Tensor | None = None,
) -> tuple[Edit, Sites, Positions]:
    """For `core.sites.edited`, the edit of each row's own state. `core.sites.intervene` is the plain counterpart.

    Both groups of a layer are edited together, like one tied group, so a layer's rows are taken out once and put back
    once. Each group of each state has its own line, and its own tensors.

    owners (B,): the number of each row's state, where the tensors of `state` are those of K states, (K, S, ...); None:
    one state. share (B,) or (B, n): for interventions with branches, each row's shares, as phi["share"].

    Raises ValueError for a state of another number of sites.
    """
    if owners is None:  # one state: number 0 of one
        state = {name: tensor.unsqueeze(0) for name, tensor in state.items()}
    K, S = next(iter(state.values())).shape[:2]
    if len(sites) != S:
        raise ValueError(f"a state for {S} sites cannot steer {len(sites)}")
    groups, together = sites.groups, replace(sites, tied=True)
    grid = len(groups), len(sites.layers)
    per_layer = unstacked({name: tensor.unflatten(1, grid) for name, tensor in state.items()}, 2)  # of (K, groups, ...)
    phis = [{name: tensor.flatten(0, 1) for name, tensor in phi.items()} for phi in per_layer]
    row = torch.cat([positions.rows[group] for group in groups])
    number = torch.cat([torch.full_like(positions.rows[group], i) for i, group in enumerate(groups)])
    lines = Lines(number if owners is None else owners[row] * len(groups) + number, K * len(groups))
    shared = {} if share is None else {"share": lines.lined_up(as_columns(share)[row])}

    def edit(h: Tensor, site: int, group: str) -> Tensor:
        return lines.taken_back(kind.edit(lines.lined_up(h), {**phis[site], **shared}))  # (K groups, m, d) in between

    (name,) = together.groups
    index = torch.cat([positions.indices[group] for group in groups])
    return edit, together, Positions(positions.shape, {name: index}, {name: row})


def as_columns(share: Tensor) -> Tensor:
    """Shares (B,) or (B, n) as (B, n), n = 1 for the former."""
    return share.view(len(share), -1)


def filled(places: Tensor) -> Tensor:
    """places (n,), extended to a multiple of FULL by repeating the first place."""
    return nn.functional.pad(places, (0, -len(places) % FULL), value=int(places[0])) if len(places) else places
