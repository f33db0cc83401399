"""The classification head of ReFT's GLUE runs: tanh(D h + e) to C tanh(...) + f, on the first token's hidden state.

It is RoBERTa's own head. ReFT trains it jointly but does not count it in its parameter percentages; here `head_params`
counts it separately. Its tensors are part of a client's state, with names like "head.D".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import RunConfig
from ..core.state import State
from ..errors import DataError


@dataclass(frozen=True)
class Head:
    """d: hidden size. outputs: classes, or 1 for a regression."""

    d: int
    outputs: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """1,051,650 numbers for d = 1024 and 2 classes, as RoBERTa-large has."""
        return {
            "head.D": (self.d, self.d),
            "head.e": (self.d,),
            "head.C": (self.outputs, self.d),
            "head.f": (self.outputs,),
        }

    def start(self, generator: torch.Generator) -> State:
        """RoBERTa's initialisation: normal with standard deviation 0.02; offsets are zero."""
        return {
            name: torch.zeros(shape) if len(shape) == 1 else torch.empty(shape).normal_(0, 0.02, generator=generator)
            for name, shape in self.shapes.items()
        }

    def logits(self, h: Tensor, phi: State, dropout: float = 0.0) -> Tensor:
        """(B, outputs) from the first token's hidden state h (B, d); for K heads, (K, m, outputs) from h (K, m, d)."""
        drop = nn.Dropout(dropout).train(dropout > 0)
        dense = torch.tanh(_linear(drop(h.to(phi["head.D"].dtype)), phi["head.D"], phi["head.e"]))
        return _linear(drop(dense), phi["head.C"], phi["head.f"])


def check_classes(named: Mapping[str, Mapping[str, list[str]]], config: RunConfig) -> None:
    """Raises DataError where two clients differ in the classes or answers of a task, unless GLUE's head is not shared.

    named: `data.partition.classes_of` for each client. Otherwise one output would learn two meanings, or one task would
    be graded in two ways.
    """
    first: dict[str, tuple[str, list[str]]] = {}
    apart = config.benchmark == "glue" and (config.head == "private" or config.method == "local")
    for client, tasks in named.items() if not apart else ():
        for task, classes in tasks.items():
            other, known = first.setdefault(task, (client, classes))
            if classes != known:
                private = ', or take head="private"' if config.benchmark == "glue" else ""
                raise DataError(
                    f"The labels of {task} are {', '.join(known)} with {other} and {', '.join(classes)} with {client}: "
                    f"give both the same file {task}_labels.json, the list of all classes{private}."
                )


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """torch's `linear`, also for a batch of weights, which torch does not support."""
    if weight.dim() == 2:
        return nn.functional.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
