"""One notebook, executed by papermill in a kernel of its own."""

import asyncio
import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from papermill.exceptions import PapermillExecutionError

from ..errors import FedReFTError
from ..memory import no_thread_cache
from .exclusive import mark
from .jobs import PROJECT, Job, first_line
from .progress import Progress

RUNNING = ".running.ipynb"
TO_DEVELOPERS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")  # see record.py
# A kernel gets ports that are free, and binds them a second later. Another program may have taken one of them by then.
STARTS = 3  # tries
DIED_AT_ITS_START = "died before replying to kernel_info"  # of jupyter_client
logging.getLogger("papermill").addHandler(logging.NullHandler())  # it also raises what it logs as an error


class NotebookError(FedReFTError):
    """A notebook failed."""


@dataclass(frozen=True)
class Kernels:
    """How the kernels of a batch are started. folder: where they write; stopped: set where the batch is interrupted."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)


class ThisPython(AsyncKernelManager):
    """Starts kernels with this interpreter and this library, whatever kernelspecs are installed."""

    kernels: Kernels

    @property
    def kernel_spec(self) -> KernelSpec:
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        env = {
            "PYTHONPATH": path,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # with a user's own there would be no pictures
            "PYTHONWARNINGS": ",".join(f"ignore::{name}" for name in TO_DEVELOPERS),
            **no_thread_cache(),
            **self.kernels.environment,
            **mark(self.kernels.folder),
        }
        # Its messages about its connection would break the progress line. Errors of cells come as outputs.
        return KernelSpec(**get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]), env=env)


def execute(job: Job, kernels: Kernels, progress: Progress) -> Path:
    """Executes a notebook as NN_name.running.ipynb in the kernels' folder; returns this path when it is complete.

    The working directory must be the notebook's folder: papermill would change it for the whole process, and it is
    called in several threads. A notebook that fails is kept as NN_name.failed.ipynb. Raises NotebookError.
    """
    failed = kernels.folder / f"{job.name}.failed.ipynb"
    running = kernels.folder / f"{job.name}{RUNNING}"
    try:
        _run(job, running, kernels, progress)
    except Exception as error:
        if kernels.stopped.is_set():
            running.unlink(missing_ok=True)
            raise NotebookError(f"{job.name} was stopped") from None
        if isinstance(error, PapermillExecutionError):
            os.replace(running, failed)
            raise NotebookError(
                f"{job.name} stopped in cell [{error.exec_count}] with {error.ename}: {first_line(error.evalue)} "
                f"(see {failed}); fix it and run the same command again, finished runs are kept"
            ) from None
        # nbclient's DeadKernelError, or the error of a kernel that died at its start
        if isinstance(error, RuntimeError) and "kernel" in str(error).lower():
            os.replace(running, failed)
            raise NotebookError(
                f"{job.name}: its kernel was ended from outside, most often because memory ran out (see {failed}); "
                "close other programs and run the same command again, finished rounds are kept"
            ) from None
        raise
    finally:
        with suppress(RuntimeError):  # there is none yet
            asyncio.get_event_loop().close()  # papermill's, of this thread
    return running


def _run(job: Job, running: Path, kernels: Kernels, progress: Progress, starts: int = STARTS) -> None:
    """Executes a notebook, again where its kernel dies at its start."""
    try:
        papermill.execute_notebook(
            _literal(job.notebook),
            _literal(running),
            job.parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            kernel_manager_class=type("OfThisBatch", (ThisPython,), {"kernels": kernels}),
            on_notebook_start=progress.start,
            on_cell_start=progress.cell,
            iopub_timeout=60,  # seconds; nbclient's 4 are too few on a busy machine
        )
    except RuntimeError as error:
        if starts == 1 or kernels.stopped.is_set() or DIED_AT_ITS_START not in str(error):
            raise
        _run(job, running, kernels, progress, starts - 1)


def _literal(path: Path) -> str:
    """A path for papermill, which fills in {names} in a path: a folder's name may contain braces."""
    return str(path).replace("{", "{{").replace("}", "}}")
