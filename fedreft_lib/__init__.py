"""FedReFT as a library: federated representation fine-tuning with All-But-Me aggregation (arXiv 2508.20295).

>>> import torch
>>> from fedreft_lib import all_but_me, mix
>>> X = torch.tensor([[0.0], [1.0], [2.0], [9.0]])  # four clients, one number each
>>> mix(X, all_but_me(X, "mean").A, 0.5)[0]  # client 0 goes half way to the mean of the others
tensor([2.])

    core        the paper in plain torch: interventions, one client's training, All-But-Me; read this first
    data        items, prompts, grading, which client holds what
    config      every parameter of a run
    model       a frozen backbone, steered by a client's state; model.fast is there for speed alone
    methods     the federated methods, one file each
    runs        a run's folder: checkpoints, results
    federation  the client's side and the server's side of a round, and the run
    flower      the same federation over Flower
    workbook    what the notebooks show
    batch       notebooks executed in a batch, and the report
"""

import gc
import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
# name: its module, which is imported at first use, so that `--help` does not wait for torch
_HOMES = {
    "AnswerSet": "model.encoding",
    "AtSites": "model.adapters",
    "DiReFT": "core.interventions",
    "INTERVENTIONS": "core.interventions",
    "InLinears": "model.adapters",
    "LoReFT": "core.interventions",
    "Run": "runs.results",
    "RunConfig": "config",
    "Sites": "core.sites",
    "SteeredModel": "model.steered",
    "all_but_me": "core.aggregation",
    "encode": "model.tokens",
    "assemble": "federation.assembly",
    "batches": "core.training",
    "derive": "seeds",
    "federated_round": "federation.rounds",
    "geometric_median": "core.aggregation",
    "intervene": "core.sites",
    "learning_rate": "core.training",
    "load_backbone": "model.backbone",
    "load_run": "runs.results",
    "load_runs": "runs.results",
    "mean": "core.aggregation",
    "method_of": "config.notebook_parameters",
    "mix": "core.mixing",
    "mixing_matrix": "core.mixing",
    "needs": "federation.assembly",
    "orthonormality_error": "core.rotation",
    "parse_layers": "core.notation",
    "parse_positions": "core.notation",
    "partition_of": "federation.dealing",
    "planned": "federation.assembly",
    "results_of": "runs.results",
    "retract": "core.rotation",
    "run": "federation.rounds",
    "run_together": "federation.together",
    "shared_backbone": "model.shared",
    "start": "federation.local_clients",
    "train": "core.training",
    "train_client": "federation.training",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(imported(f"{__name__}.{_HOMES[name]}"), name)


def imported(module: str) -> ModuleType:
    """A module, imported without collecting garbage: torch, transformers and scipy make a million objects that stay.
    To look through them again and again takes a second of the import, and another one when the process ends.
    """
    if module in sys.modules:  # freezing would keep what has become garbage since
        return import_module(module)  # which waits for another thread that is still importing it
    collecting = gc.isenabled()
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
