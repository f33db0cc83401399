"""Rows of several states in one batch: lined up state by state, so that one product serves all states, and back.

    rows (n, ...)  -- lined_up -->  lines (K, m, ...)  -- each line under its own state -->  -- taken_back -->  rows

All lines are as long as the longest, and a multiple of `FULL`. What is left of one is zeros and not another's row: its
gradient is zero, and zero times another client's NaN would be NaN.
"""

import torch
from torch import Tensor, nn

FULL = 8  # rows: from here on, in eights, a row of a product has the same bits however many others there are (MKL's do)


class Lines:
    """owners (n,): for each row the number of its state, in any order. states: K; some may own no row."""

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


def filled(places: Tensor) -> Tensor:
    """places (n,) and, up to a multiple of FULL, the first place again, as often as it takes."""
    return nn.functional.pad(places, (0, -len(places) % FULL), value=int(places[0])) if len(places) else places
