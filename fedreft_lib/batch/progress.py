"""One line about the notebook that runs.

papermill's own bar counts cells. Its estimate of the time left is far wrong where one cell takes minutes, and it prints
one line per redraw where the output is no terminal. Here nothing is estimated: the line says how long the notebook has
run, and how long it ran in all the last time, where there was one.
"""

import threading
import time
from typing import TextIO

import nbformat


class Progress:
    """On a terminal, one line, redrawn each second; elsewhere a line at the start, each minute and at the end."""

    def __init__(self, label: str, out: TextIO, begin: str = "starting", last: float | None = None):
        """begin: the first words. last: seconds that the notebook took the last time."""
        self.label, self.out, self.begin = label, out, begin
        self.last = "" if last is None else f" (last time {last:.0f} s in all)"
        self.current, self.cells, self.begun = 0, 0, time.monotonic()
        self.live = out.isatty()
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def start(self, notebook: nbformat.NotebookNode) -> None:
        self.cells = len(notebook.cells)

    def cell(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.current = cell_index + 1

    def __enter__(self) -> "Progress":
        self._say(self.begin)
        self._clock.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._over.set()
        self._clock.join()
        self.last = ""
        self._say(f"{self.cells} cells" if kind is None else f"stopped at cell {self.current} of {self.cells}", "\n")

    def _tick(self) -> None:
        while not self._over.wait(1 if self.live else 60):
            self._say(f"cell {self.current} of {self.cells}")

    def _say(self, what: str, end: str = "") -> None:
        line = f"{self.label}: {what}, {time.monotonic() - self.begun:.0f} s{self.last}"
        self.out.write(f"\r{line}\x1b[K{end}" if self.live else f"{line}\n")
        self.out.flush()
