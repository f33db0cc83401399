"""FedReFT as a library: federated representation fine-tuning with All-But-Me aggregation (arXiv 2508.20295).

>>> import torch
>>> from fedreft_lib import all_but_me, mix
>>> X = torch.tensor([[0.0], [1.0], [2.0], [9.0]])  # four clients, one number each
>>> mix(X, all_but_me(X, "mean").A, 0.5)[0]  # client 0 goes half way to the mean of the others
tensor([2.])
"""

from .aggregation import all_but_me, geometric_median, mix
from .backbone import load_backbone
from .config import RunConfig
from .federation import run
from .interventions import INTERVENTIONS, DiReFT, LoReFT
from .runs import Run, load_run, load_runs, results_of
from .sites import Sites
from .steering import SteeredModel

__version__ = "0.1.0"
__all__ = [
    "INTERVENTIONS",
    "DiReFT",
    "LoReFT",
    "Run",
    "RunConfig",
    "Sites",
    "SteeredModel",
    "all_but_me",
    "geometric_median",
    "load_backbone",
    "load_run",
    "load_runs",
    "mix",
    "results_of",
    "run",
]
