"""Less memory that the C library's allocator (glibc's) holds and no tensor uses. Elsewhere all of this does nothing.

torch asks for each tensor with a few bytes more than it needs, to align it, and these go back at once. The thread's
cache keeps them for small objects, which then stand on both sides of the tensor: where the tensor was, no other of its
size fits with its own few bytes. Without the cache the holes close; in steps of 300 tokens by SmolLM2-135M a process
holds 100 to 130 MB less, in the same time. The cache can be chosen only before a process starts, so we do that for
those that we start ourselves: kernels, JupyterLab and Flower's processes.
"""

import ctypes
import os
from contextlib import suppress

NO_THREAD_CACHE = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
LARGE = 2**23  # bytes of a tensor whose memory is given back at once: of the vocabulary's width, not of a block's
KEPT = 2**28  # bytes that are kept at the end of the heap for the next tensors
_largest = [0]  # tokens of the largest step so far
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def no_thread_cache() -> dict[str, str]:
    """Environment variables for a new process. What the user has chosen stays."""
    return {name: os.environ.get(name, value) for name, value in NO_THREAD_CACHE.items()}


def trim() -> None:
    """Gives the system back what no tensor uses; glibc keeps it, in pieces that other tensors do not fit into."""
    with suppress(AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def make_room(tokens: int) -> None:
    """`trim`, before a training step of more tokens than all before it: its tensors fit into none of their holes."""
    if tokens > _largest[0]:
        _largest[0] = tokens
        trim()


def give_back_large() -> None:
    """Has glibc ask the system for each large tensor by itself, so that it leaves no hole between small ones.

    Its own limit grows with each tensor, up to four times this one.
    """
    with suppress(AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, KEPT)
