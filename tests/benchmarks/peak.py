"""How much memory an aggregation takes beyond its input: python -m tests.benchmarks.peak CLIENTS PARAMETERS.

Prints bytes: what the process's peak resident memory (VmHWM) rises by from when the matrix is there.
"""

import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from fedreft_lib.core.aggregation import all_but_me

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")


def printed_by(module: str, *arguments: object) -> float:
    """The number that `python -m module ARGUMENTS` prints last, in a process of its own."""
    asked = [sys.executable, "-m", module, *map(str, arguments)]
    return float(subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1])


def matrix(clients: int, parameters: int) -> Tensor:
    """X (N, P): clients of different spread, three of them far off. Made in place, as it may be a gigabyte."""
    X = torch.empty(clients, parameters).normal_(generator=torch.Generator().manual_seed(0))
    X[-3:] *= 10
    return X.mul_(torch.linspace(0.5, 2, clients).unsqueeze(1))


def resident() -> int:
    """The process's peak resident memory so far, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())[1])


if __name__ == "__main__":
    all_but_me(matrix(3, 1000))  # what torch loads and keeps on its first use
    X = matrix(*map(int, sys.argv[1:]))
    before = resident()
    all_but_me(X)
    print(resident() - before)
