"""A Flower federation on this machine: Ray runs a few processes, and a free one answers each message."""

import logging
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from ..config import RunConfig
from ..errors import FedReFTError
from ..federation.workers import check as check_number
from ..model.architectures import free_memory
from ..model.device import choose_device
from ..model.identity import bytes_of
from ..runs.results import Run
from .relay import app_of, in_this_process
from .secure_sums import Sums, check_sums, serve_sums
from .server_app import check, serve

Outcome = TypeVar("Outcome")
GRACE = 30.0  # seconds for a server to end after its clients
PROCESS = 3 * 2**29  # bytes that a process may take beside its backbone
IN_MEMORY = 4  # times the size of its files is the most that a backbone takes: 8 bits there, float32 here


def simulate(
    config: RunConfig,
    folder: str | Path | None = None,
    resume: bool = True,
    *,
    at_once: int | None = None,
    progress: bool = True,
) -> Run:
    """`federation.rounds.run` over Flower: the same rounds, history and states, to the bit on a CPU in float32.

    at_once: the number of processes that serve the clients, each with one thread and its own copy of the backbone.
    None: see `by_rule`. The numbers do not depend on it.
    """
    check(config)

    def served(grid: Grid, context: Context, **how) -> Run:
        return serve(grid, config, folder, resume=resume, progress=progress, **how)

    with tempfile.TemporaryDirectory() as temporary:
        return _simulated(served, config, temporary if folder is None else str(Path(folder) / "nodes"), at_once)


def simulate_sums(config: RunConfig, folder: str | Path, *, at_once: int | None = None) -> Sums:
    """`secure_sums.serve_sums` on this machine. The clients' states are in folder/nodes; only clients know them."""
    check_sums(config)

    def served(grid: Grid, context: Context, **how) -> Sums:
        return serve_sums(grid, context, config, **how)

    return _simulated(served, config, str(Path(folder) / "nodes"), at_once)


def by_rule(config: RunConfig) -> int:
    """Processes for a simulation: as many as torch has threads here, but no more than there are clients or memory for.

    One on a GPU, and one for a backbone on the hub, whose size is known when it has been read.
    """
    device, files = choose_device(config.device), bytes_of(config.backbone)
    if device.type != "cpu" or files is None:
        return 1
    return max(1, min(torch.get_num_threads(), config.clients, free_memory(device) // (PROCESS + IN_MEMORY * files)))


class _SimulationFailed(Exception):
    """Flower's simulation failed, not the run."""


def _simulated(served: Callable[..., Outcome], config: RunConfig, home: str, at_once: int) -> Outcome:
    """The server's result of a simulation. On a busy machine Ray may not start within half a minute and then fails, so
    a failed simulation is tried once more."""
    check_number(at_once, "at_once")
    at_once = at_once or by_rule(config)
    try:
        return _attempt(served, config, home, at_once)
    except _SimulationFailed:
        warnings.warn("Flower's simulation broke down, its log says why: it is tried once more", stacklevel=3)
    try:
        return _attempt(served, config, home, at_once)
    except _SimulationFailed as error:
        raise FedReFTError("Flower's simulation broke down twice: its log above says why") from error


def _attempt(served: Callable[..., Outcome], config: RunConfig, home: str, at_once: int) -> Outcome:
    ended, over = threading.Event(), threading.Event()
    # In a simulation no node gets lost.
    how = {"patience": float("inf"), "ended": ended}
    outcome: list[Outcome | BaseException] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            outcome.append(served(grid, context, **how))
        except Exception as error:  # otherwise Flower ends the thread with its own traceback
            outcome.append(error)
        finally:
            over.set()

    resources = {
        "init_args": {"num_cpus": at_once, "include_dashboard": False, "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)  # it logs each step, and recommends `flwr run`
    try:
        run_simulation(server_app, app_of(in_this_process(Path(home))), config.clients, backend_config=resources)
    except RuntimeError as error:
        ended.set()
        over.wait(GRACE)  # until the server has released the run's folder
        raise _SimulationFailed from error
    finally:
        ended.set()
        log.setLevel(level)
    if not outcome:
        raise FedReFTError("Flower's simulation ended before the run did: its log above says why")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
