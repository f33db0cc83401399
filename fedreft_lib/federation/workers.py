"""Processes that compute the tasks of a round side by side.

Each task is computed with one thread, in a worker as in this process (see `model.device.one_thread`). So the bits of a
run depend neither on the number of processes nor on that of cores.

On Linux the processes are forked: weights and kept hidden states are pages that all of them have in common. Elsewhere
they are spawned, and get these as torch's shared memory. Only states and scores are sent.
"""

import io
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.multiprocessing  # lets multiprocessing pass tensors as shared memory
from torch import Tensor

from ..config import RunConfig
from ..errors import ConfigError, ElsewhereWarning, FedReFTError
from ..memory import give_back_large, trim
from .assembly import Federation
from .engine import cohorts
from .training import participants
from .work import Work, in_turn

WORTH = 3e12  # multiplications and additions of a run from which processes of its own gain: they take half a second
START = "fork" if sys.platform == "linux" else "spawn"


def by_rule(federation: Federation, config: RunConfig, threads: int) -> int:
    """How many processes compute a run's tasks, where torch may use `threads` threads. 1: this process.

    A spawned process executes the main script again, up to where it is guarded, which nobody expects who asked for
    nothing. So by rule processes are spawned only for notebooks, which are no such script.
    """
    scripted = getattr(sys.modules["__main__"], "__file__", None) is not None
    if START == "spawn" and scripted:
        return 1
    backbone, adapter, everybody = federation.model.backbone, federation.model.adapter, participants(federation, config)
    if backbone.device.type != "cpu":
        return 1
    above = 1 - (adapter.below + 1) / backbone.n_layers if everybody[0].train.hidden is not None else 1
    numbers = above * sum(p.numel() for p in backbone.model.parameters())
    tokens = config.rounds * sum(p.steps for p in everybody) * config.batch_size * federation.longest
    groups = cohorts(dict(enumerate(everybody)), config, backbone.device)
    return min(threads, len(groups)) if 4 * numbers * tokens > WORTH else 1


@contextmanager
def working(federation: Federation, config: RunConfig, number: int) -> Iterator[Work]:
    """`number` processes that compute tasks of this federation; `in_turn` for one, or where none can be started."""
    trim()  # what reading the tokenizer and the questions has left
    if number == 1:
        yield in_turn
        return
    pool = Workers(federation, config, number)
    try:
        yield pool
    finally:
        pool.close()


class Workers:
    """Processes with one thread each. If one of them ends, the rest is computed in this process, with a warning."""

    def __init__(self, federation: Federation, config: RunConfig, number: int):
        self.federation, self.config = federation, config
        self._processes: list[multiprocessing.Process] = []
        self._connections: list[Connection] = []
        context = multiprocessing.get_context(START)
        if START == "spawn":
            federation = replace(federation, memo={})
        try:
            for _ in range(number):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, os.getpid(), federation, config), daemon=True)
                process.start()
                there.close()
                self._processes.append(process)
                self._connections.append(here)
        except (OSError, AssertionError) as error:  # no memory for one more; a daemon may have no children
            self._alone(f"no more processes can be started ({error})")

    def __call__(
        self, function: Callable, federation: Federation, config: RunConfig, tasks: Sequence[tuple], on_step: Callable
    ) -> list:
        """See `Work`. Raises what a task raises."""
        known = federation is self.federation and config is self.config
        if len(tasks) < 2 or not self._processes or not known:
            return in_turn(function, federation, config, tasks, on_step)
        found: dict[int, Any] = {}
        trim()  # what the end of the last round has left, while the workers need most
        try:
            for i, value in self._side_by_side(function, tasks, on_step):
                found[i] = value
        except (EOFError, ConnectionError):
            self._alone("a process that computed for this run was ended, most often because memory ran out")
            rest = [i for i in range(len(tasks)) if i not in found]
            found |= zip(rest, in_turn(function, federation, config, [tasks[i] for i in rest], on_step), strict=True)
        except BaseException:
            self.close()
            raise
        return [found[i] for i in range(len(tasks))]

    def _side_by_side(
        self, function: Callable, tasks: Sequence[tuple], on_step: Callable[[], object]
    ) -> Iterator[tuple[int, Any]]:
        """The values of all tasks, as they come, with the tasks' numbers."""
        waiting, idle, busy = iter(range(len(tasks))), list(self._connections), dict[Connection, int]()
        while True:
            while idle and (i := next(waiting, None)) is not None:
                connection = idle.pop()
                connection.send_bytes(_packed((function, tasks[i])))
                busy[connection] = i
            if not busy:
                return
            for connection in wait(list(busy)):
                message = connection.recv()  # what this class's own process sends
                if message is None:
                    on_step()
                    continue
                value, error, warned = message
                for category, text in warned:
                    warnings.warn(text, category, stacklevel=4)
                if error is not None:
                    raise error
                yield busy.pop(connection), value
                idle.append(connection)

    def _alone(self, why: str) -> None:
        self.close()
        warnings.warn(f"{why}: this process computes alone", ElsewhereWarning, stacklevel=4)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process, connection in zip(self._processes, self._connections, strict=True):
            connection.close()
            process.join()
        self._processes, self._connections = [], []


def check(number: int | None, name: str = "workers") -> None:
    """Raises ConfigError for what is no number of processes."""
    if number is not None and not (type(number) is int and number >= 1):
        raise ConfigError(f"{name} must be a number of processes from 1, or None for a choice by rule, got {number!r}")


# --- in a worker ------------------------------------------------------------------------------------------------------


def _serve(connection: Connection, parent: int, federation: Federation, config: RunConfig) -> None:
    """Computes one task after another, until the process that sends them has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends this one
    torch.set_num_threads(1)
    give_back_large()
    while True:
        while not connection.poll(1):
            if os.getppid() != parent:
                return
        try:
            function, task = connection.recv()
        except EOFError:
            return
        value = error = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                value = function(federation, config, *task, lambda *_: connection.send(None))
            except Exception as raised:
                if not isinstance(raised, FedReFTError):  # a mistake in the library: where was it?
                    raised.add_note(f"in a worker process:\n{traceback.format_exc()}")
                error = raised
        warned = [(each.category, str(each.message)) for each in caught]
        connection.send_bytes(_packed((value, error, warned)))
        value = None
        trim()


class _Plain(pickle.Pickler):
    """Writes a tensor as its numbers alone: by itself, a view would be written with all that it is a view of."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1)
        return _tensor, (flat.view(torch.uint8).numpy().tobytes(), value.dtype, tuple(value.shape))


def _tensor(content: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return (
        torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape) if content else torch.empty(shape, dtype=dtype)
    )


def _packed(message: Any) -> bytes:
    buffer = io.BytesIO()
    _Plain(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()
