"""Notation for positions and layers: texts like "f7+l7" (pyreft's) and "20-29" -> numbers."""

import re
from collections.abc import Sequence

from ..errors import ConfigError


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
