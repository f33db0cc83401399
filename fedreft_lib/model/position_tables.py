"""The most tokens that a model can read at once, where it looks positions up in a table.

BERT, RoBERTa, GPT-2 and OPT have learned tables, GPT-J and CTRL computed ones. Each starts at its own row. Rotary and
relative positions have no limit. To find the table, the model reads two short texts that repeat one token: a table of
positions is asked for consecutive rows, and its limit is the same for both texts.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from .special_tokens import vocabulary
from .ways import known_to, unchanged

LENGTHS = (5, 7)  # tokens


def most_tokens(model: PreTrainedModel) -> int | None:
    """The length of the longest text that `model` has positions for; None where no table limits it.

    Raises FedReFTError for a model whose settings change when it reads such a text.
    """
    token = vocabulary(model) // 2
    token += token == getattr(model.config, "pad_token_id", None)  # RoBERTa's positions skip padding
    found = []
    for length in LENGTHS:
        with torch.no_grad(), unchanged(model), _Lookups(length) as lookups:
            try:
                ids = torch.full((1, length), token, device=model.device)
                model(input_ids=ids, **known_to(model, {"use_cache": False}))
            except Exception:  # the trials of `agreement` refuse a model that cannot read at all
                return None
        found.append(lookups.limits)
    return min(set.intersection(*found), default=None)


class _Lookups(TorchDispatchMode):
    """Records, for each table that is asked for `length` consecutive rows, how many tokens it has rows for."""

    def __init__(self, length: int):
        super().__init__()
        self.length, self.limits = length, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().partition(".")[0]
        if name == "aten::embedding":
            self._note(args[0].shape[0], args[1])
        elif name == "aten::gather":  # one index for each number of a row
            self._note(args[0].shape[args[1]], args[2][..., 0])
        elif name == "aten::index_select":
            self._note(args[0].shape[args[1]], args[2])
        elif name == "aten::index":
            for rows, index in zip(args[0].shape, args[1], strict=False):
                self._note(rows, index)
        return operation(*args, **(kwargs or {}))

    def _note(self, rows: int, index: Tensor | None) -> None:
        if index is None or index.dtype != torch.long or index.dim() == 0 or index.numel() != index.shape[-1]:
            return  # masks, and rows that depend on two positions
        asked = index.flatten()[: self.length + 1].tolist()
        in_order = [row == asked[0] + i for i, row in enumerate(asked)]
        if in_order == [True] * self.length + [False] * (len(asked) - self.length):  # the last may be padding
            self.limits.add(rows - asked[0])
