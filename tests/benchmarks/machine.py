"""What the figures depend on besides the code: the machine, its threads, and what else it was doing."""

import os
import platform
from pathlib import Path

import torch

BUSY = 0.2  # of the load average of the last minute, for each core


def described() -> dict:
    """Columns that every row of the table has."""
    return {"machine": f"{_processor()}, {os.cpu_count()} cores", "torch": torch.__version__, **_now()}


def warning(here: dict) -> str:
    """A sentence about the load, which says so where it spoils the figures."""
    said = f"load average {here['load']:.2f} on {os.cpu_count()} cores, {here['threads']} threads"
    if here["load"] > BUSY * os.cpu_count():
        return f"{said}; THE MACHINE WAS BUSY: seconds are wrong, read ratios with their spread"
    return said


def _now() -> dict:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {"threads": torch.get_num_threads(), "load": round(load, 2)}


def _processor() -> str:
    """The processor's name: Linux says it in a file, others through `platform`."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
