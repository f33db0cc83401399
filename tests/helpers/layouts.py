"""A client's state of a few numbers, for tests that are computed by hand."""

from fedreft_lib.core.interventions import Intervention, LoReFT
from fedreft_lib.core.sites import Sites
from fedreft_lib.core.state import Layout
from fedreft_lib.model.adapters import AtSites
from fedreft_lib.model.heads import Head


def tiny_layout(kind: Intervention = LoReFT, head: bool = False) -> Layout:
    """One site of rank 1 in two dimensions: R (1, 1, 2), W (1, 1, 2), b (1, 1), and a head where one is asked for."""
    return Layout(AtSites(kind, Sites((0,), 1, 0), 1, 2), Head(2, 1) if head else None)
