"""Products of a few rows with frozen weights that are packed ahead: in the order in which oneDNN multiplies them.

A product of a CPU in bfloat16 begins with putting its weight into that order. For a token of each of a few texts this
takes as long as the product itself. All products of SmolLM2-135M with weights packed ahead took 0.54 of the time for 4
rows, 0.64 for 16, 0.84 for 64 and 0.96 for 512 (one thread, AVX-512 bf16), with the same bits. In float32 nothing is
won (0.99 for 16 rows). So texts in bfloat16 are generated with a packed copy, unless the model is larger than `LIMIT`.

The copies are made once per process, and belong to the modules: they go when these go. A weight that has changed since
is packed anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

LIMIT = 2**30  # bytes of a model's packed weights


@dataclass(frozen=True)
class Packed:
    source: Tensor  # what was packed: as long as it is here, nothing else gets its place in memory
    version: int
    weight: Tensor  # in oneDNN's order

    def is_of(self, weight: Tensor) -> bool:
        return self.source.data_ptr() == weight.data_ptr() and self.version == weight._version


_KEPT: WeakKeyDictionary[nn.Module, Packed] = WeakKeyDictionary()


class PackedWeights:
    """Those linear modules of a model that are faster with packed weights, and their forward passes with them."""

    def __init__(self, model: nn.Module):
        found = _packable(model) if _supported() else []
        self.forwards = {module: partial(_forward, module, _packed(module)) for module in found}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """In this context, these modules multiply by packed weights; but not where gradients are asked for."""
        for module, forward in self.forwards.items():
            vars(module)["forward"] = forward
        try:
            yield
        finally:
            for module in self.forwards:
                vars(module).pop("forward", None)  # another thread may have been faster


@cache
def _supported() -> bool:
    """Whether this torch has the functions that its compiler uses for this, and this CPU products in bfloat16."""
    needed = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (
        torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in needed)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _packable(model: nn.Module) -> list[nn.Linear]:
    """All linear modules that compute x W^T + b in bfloat16 on a CPU; none where they are larger than `LIMIT`."""
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
        and module.weight.is_contiguous()
    ]
    return found if sum(module.weight.nbytes for module in found) <= LIMIT else []


def _packed(module: nn.Linear) -> Tensor:
    known = _KEPT.get(module)
    if known is None or not known.is_of(module.weight):
        source = module.weight.detach()
        known = Packed(source, source._version, torch.ops.mkldnn._reorder_linear_weight(source))
        _KEPT[module] = known
    return known.weight


def _forward(module: nn.Linear, weight: Tensor, x: Tensor) -> Tensor:
    """Takes the place of the module's own forward pass. weight: the module's, packed."""
    if torch.is_grad_enabled() or x.dtype != torch.bfloat16 or not x.numel():
        return nn.Linear.forward(module, x)
    return torch.ops.mkldnn._linear_pointwise(x, weight, module.bias, "none", [], "")
