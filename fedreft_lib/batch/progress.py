"""What the notebooks that run are at.

papermill's own bar counts cells. Its estimate of the time left is far wrong where one cell takes minutes, and it prints
one line per redraw where the output is no terminal. Here nothing is estimated: it is said how long a notebook has run,
and how long it ran in all the last time, where there was one.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import nbformat


class Board:
    """On a terminal, one line about all notebooks that run, redrawn each second; elsewhere a line for each a minute."""

    def __init__(self, out: TextIO):
        self.out, self.live = out, out.isatty()
        self._running: list[Progress] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Board":
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._clock.join()

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            self._write(text)

    @contextmanager
    def running(self, label: str, begin: str = "starting", last: float | None = None) -> Iterator["Progress"]:
        """While a notebook runs. begin: the first words. last: seconds that it took the last time."""
        progress = Progress(label, begin, last)
        with self._lock:
            self._running.append(progress)
            self._redraw() if self.live else self._write(progress.line())
        try:
            yield progress
            progress.state = f"{progress.cells} cells"
        except BaseException:
            progress.state = f"stopped at cell {progress.current} of {progress.cells}"
            raise
        finally:
            progress.last = ""
            with self._lock:
                self._running.remove(progress)
                self._write(progress.line())

    def _tick(self) -> None:
        while not self._over.wait(1 if self.live else 60):
            with self._lock:
                if self.live:
                    self._redraw()
                for progress in [] if self.live else self._running:
                    self._write(progress.line())

    def _write(self, text: str) -> None:
        self.out.write(f"\r{text}\x1b[K\n" if self.live else f"{text}\n")
        if self.live:
            self._redraw()
        self.out.flush()

    def _redraw(self) -> None:
        """The line that is not finished. It may not wrap: a terminal goes back to the begin of its last row alone."""
        text = " | ".join(progress.line() for progress in self._running)
        self.out.write(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K" if text else "")
        self.out.flush()


class Progress:
    """What a notebook that runs is at."""

    def __init__(self, label: str, begin: str, last: float | None):
        self.label, self.state = label, begin
        self.last = "" if last is None else f" (last time {last:.0f} s in all)"
        self.current, self.cells, self.begun = 0, 0, time.monotonic()

    def start(self, notebook: nbformat.NotebookNode) -> None:
        self.cells = len(notebook.cells)

    def cell(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.current = cell_index + 1
        self.state = f"cell {self.current} of {self.cells}"

    def line(self) -> str:
        return f"{self.label}: {self.state}, {time.monotonic() - self.begun:.0f} s{self.last}"
