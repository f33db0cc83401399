"""FedReFT as a library: federated representation fine-tuning with All-But-Me aggregation (arXiv 2508.20295).

>>> import torch
>>> from fedreft_lib import all_but_me, mix
>>> X = torch.tensor([[0.0], [1.0], [2.0], [9.0]])  # four clients, one number each
>>> mix(X, all_but_me(X, "mean").A, 0.5)[0]  # client 0 goes half way to the mean of the others
tensor([2.])
"""

from importlib import import_module

__version__ = "0.1.0"
# name: the module that it comes from, imported when first asked for, so that `--help` need not wait for torch
_HOMES = {
    "AtSites": "adapters",
    "INTERVENTIONS": "interventions",
    "InLinears": "adapters",
    "DiReFT": "interventions",
    "LoReFT": "interventions",
    "Run": "runs",
    "RunConfig": "config",
    "Sites": "sites",
    "SteeredModel": "steering",
    "all_but_me": "aggregation",
    "geometric_median": "aggregation",
    "load_backbone": "backbone",
    "load_run": "runs",
    "load_runs": "runs",
    "mix": "aggregation",
    "results_of": "runs",
    "run": "federation",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
