"""Rows of several states in one batch: grouped by state, so that one product serves all states, and back.

    rows (n, ...)  -- lined_up -->  lines (K, m, ...)  -- each line with its own state -->  -- taken_back -->  rows

All lines have the length of the longest, rounded up to a multiple of `FULL`. The rest of a line is zeros, not another
row: its gradient is zero, and zero times another client's NaN would be NaN.
"""

import torch
from torch import Tensor, nn

from ...core.sites import Edit, Intervention, Positions, unstacked
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
    kind: Intervention, state: State, positions: Positions, *, share: Tensor | None = None, owners: Tensor | None = None
) -> Edit:
    """The edit of each row's own state, for `core.sites.edited`. `core.sites.intervene` is the plain counterpart.

    owners (B,): the number of each row's state, where the tensors of `state` are those of K states, (K, S, ...); None:
    one state. share (B,) or (B, n): for interventions with branches, each row's shares, as phi["share"].
    """
    if owners is None:  # one state: number 0 of one
        state = {name: tensor.unsqueeze(0) for name, tensor in state.items()}
    per_site, states = unstacked(state, 1), len(next(iter(state.values())))
    own = {group: torch.zeros_like(row) if owners is None else owners[row] for group, row in positions.rows.items()}
    lines = {group: Lines(each, states) for group, each in own.items()}
    shares = {}
    if share is not None:
        each = as_columns(share)
        shares = {group: {"share": lines[group].lined_up(each[row])} for group, row in positions.rows.items()}

    def edit(h: Tensor, site: int, group: str) -> Tensor:
        phi = {**per_site[site], **shares.get(group, {})}
        return lines[group].taken_back(kind.edit(lines[group].lined_up(h), phi))  # (K, m, d) in between

    return edit


def as_columns(share: Tensor) -> Tensor:
    """Shares (B,) or (B, n) as (B, n), n = 1 for the former."""
    return share.view(len(share), -1)


def filled(places: Tensor) -> Tensor:
    """places (n,), extended to a multiple of FULL by repeating the first place."""
    return nn.functional.pad(places, (0, -len(places) % FULL), value=int(places[0])) if len(places) else places
