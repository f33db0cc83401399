"""The last block, where only a few tokens' outputs are read: the queries of all other tokens are left out.

Every token's key and value is needed, but its query, and everything after it, serves only that token's own output. So
the modules of `OWN` compute only the tokens that are read; the outputs of all others are zeros, which are not used. In
a model of 30 blocks that saves three per cent of a pass, or a fifth where hidden states of 25 blocks are cached.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .owners import filled

OWN = ("self_attn.q_proj", "self_attn.o_proj", "mlp")  # the names in models of `packed_attention.LLAMA_LIKE`


@contextmanager
def read_at(block: nn.Module, tokens: Tensor, shape: tuple[int, int]) -> Iterator[None]:
    """In this context the outputs of `block` are correct only at `tokens` (M,), distinct flat indices into `shape`."""
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
