"""Several notebooks at once: which may start, how many, and with how many threads each.

Notebooks are independent, but for those that read the runs of others: these wait for them. On two cores, two kernels
with one thread each do more than one kernel with two threads, since much of a notebook is not done in parallel.
"""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .jobs import Job  # loads packages that `doctor`, which asks for `cores`, may find missing

MOST = 4  # notebooks at once: of the ordered notebooks, more would wait for each other
MEMORY = 4  # GiB for a notebook of the profile quick: it was seen to take 3, and the system has a share


def how_many() -> int:
    """Notebooks at once on this machine, by its cores and its free memory; one where there is a GPU."""
    import torch

    from ..model.architectures import free_memory

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 1
    return max(1, min(MOST, cores(), free_memory(torch.device("cpu")) // (MEMORY * 2**30)))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(at_once: int) -> dict[str, str]:
    """The environment variable with a kernel's share of the cores. A number that the user has set stays."""
    name = "OMP_NUM_THREADS"
    return {} if at_once == 1 or name in os.environ else {name: str(max(1, cores() // at_once))}


def longest_chain_first(jobs: Iterable["Job"]) -> list["Job"]:
    """By the seconds of a job and of the longest chain of jobs that wait for it: so none of these begins last."""
    jobs = list(jobs)

    def ahead(job: "Job") -> float:
        return job.seconds + max((ahead(other) for other in jobs if job.name in other.reads), default=0.0)

    return sorted(jobs, key=ahead, reverse=True)


def execute_all(
    jobs: Iterable["Job"], at_once: int, execute: Callable[["Job"], None], stop: Callable[[], None]
) -> None:
    """Calls `execute` for each job in a thread, in this order; a job that reads others' runs waits for them.

    After an error nothing more begins, and it is raised when those that run have ended. stop: ends those that run; it
    is called where this thread is interrupted.
    """
    waiting, running, begun = list(jobs), dict[Future, "Job"](), set[str]()

    def tracked(job: "Job") -> None:
        begun.add(job.name)
        try:
            execute(job)
        finally:
            begun.remove(job.name)

    error = None
    pool = ThreadPoolExecutor(at_once)
    try:
        while running or (waiting and error is None):
            ahead = {job.name for job in (*waiting, *running.values())}
            ready = [job for job in waiting if error is None and ahead.isdisjoint(job.reads)]
            for job in ready[: at_once - len(running)]:
                waiting.remove(job)
                running[pool.submit(tracked, job)] = job
            # With a timeout, for a signal that comes right before a lock is waited for is not seen while that lasts.
            for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                del running[future]
                error = error or future.exception()
    except (KeyboardInterrupt, SystemExit):
        while True:
            with suppress(KeyboardInterrupt, SystemExit):  # once more, which changes nothing
                stop()
                if not begun:
                    break
                time.sleep(0.1)  # a kernel that was about to start may have started then
        raise
    finally:
        pool.shutdown()
    if error is not None:
        raise error
