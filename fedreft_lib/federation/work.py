"""The tasks of a round: training a group of clients, taking a client's answer, scoring a state.

A task is a function of the federation, the config and a few states. `in_turn` computes tasks in this process, `workers`
in processes beside it.
"""

from collections.abc import Callable, Sequence

from ..config import RunConfig
from .assembly import Federation

# (function, federation, config, tasks, on_step) -> the value of function(federation, config, *task, on_step) of each.
Work = Callable[[Callable, Federation, RunConfig, Sequence[tuple], Callable[[], object]], list]


def in_turn(
    function: Callable, federation: Federation, config: RunConfig, tasks: Sequence[tuple], on_step: Callable[[], object]
) -> list:
    """The tasks one after another, in this process."""
    return [function(federation, config, *task, on_step) for task in tasks]
