"""What additions keep of the input of a linear module: itself, in its own dtype, instead of a float32 copy for each."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def cast_again(x: Tensor, cast: Tensor) -> AbstractContextManager:
    """In this context, where autograd would keep `cast`, which is x in another dtype, it keeps x and casts it again.

    The backward pass has the same bits. It raises RuntimeError where x was changed in place since.
    """
    return _casting(x, cast) if cast is not x and torch.is_grad_enabled() else nullcontext()


@contextmanager
def _casting(x: Tensor, cast: Tensor) -> Iterator[None]:
    memory, dtype, version = cast.untyped_storage().data_ptr(), cast.dtype, x._version

    def pack(kept: Tensor) -> Tensor | tuple:
        if kept.dtype != dtype or kept.untyped_storage().data_ptr() != memory:
            return kept
        return kept.shape, kept.stride(), kept.storage_offset()

    def unpack(kept: Tensor | tuple) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if x._version != version:
            raise RuntimeError("the input of a linear module with an addition was changed in place before its gradient")
        return x.detach().to(dtype).as_strided(*kept)

    with saved_tensors_hooks(pack, unpack):
        yield
