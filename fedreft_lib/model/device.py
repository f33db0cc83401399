"""The device and the precision of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str | torch.device) -> torch.device:
    """For "auto" the GPU where there is one. Raises ConfigError for a device that this machine does not have."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises each of them
        raise ConfigError(f"device {str(device)!r} cannot be used here; use 'auto', 'cpu' or 'cuda'.") from error
    return torch.device(device)


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """For "auto" bfloat16 where `device` multiplies it natively, else float32. Raises ConfigError for other names."""
    if dtype in DTYPES.values():
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise ConfigError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {dtype!r}.")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older torch versions do not know; float32 is always correct. Emulated bfloat16 is slower than float32.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        native = device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if native else torch.float32


@contextmanager
def one_thread(device: str | torch.device = "auto") -> Iterator[None]:
    """Within it, torch computes on a CPU with one thread, so the bits do not depend on the number of cores.

    Sums in another order differ in their last bits. More cores serve more clients, see `federation.workers`. On a GPU
    nothing changes. Raises ConfigError for a device that this machine does not have.
    """
    before = torch.get_num_threads()
    if choose_device(device).type != "cpu" or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
