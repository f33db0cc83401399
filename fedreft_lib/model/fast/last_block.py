"""The last block where only a few tokens are read off a model: what comes of the others' own queries is left out.

Every token's key and value is needed; its query, and all that follows from it, serves that token's output alone. So the
modules of `OWN` are given the tokens that are read, and the others' outputs are zeros: nobody reads what comes of them.
In a model of 30 blocks that is three per cent of a pass, and a fifth of what is left above kept hidden states of 25.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .owners import filled

OWN = ("self_attn.q_proj", "self_attn.o_proj", "mlp")  # as models of `attention.LLAMA_LIKE` have them


@contextmanager
def read_at(block: nn.Module, tokens: Tensor, shape: tuple[int, int]) -> Iterator[None]:
    """Within this context the outputs of `block` are right at tokens (M,) alone, flat places in `shape`, none twice."""
    read = filled(tokens)

    def taken(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].flatten(0, 1).index_select(0, read).unsqueeze(0),)

    def put_back(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        whole = output.new_zeros(math.prod(shape), output.shape[-1])
        return whole.index_copy(0, tokens, output[0, : len(tokens)]).unflatten(0, shape)

    handles = []
    try:
        for name in OWN:
            module = block.get_submodule(name)
            handles.append(module.register_forward_pre_hook(taken))
            handles.append(module.register_forward_hook(put_back))
        yield
    finally:
        for handle in handles:
            handle.remove()
