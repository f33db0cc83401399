"""The executed notebooks of a profile as one page: folder/report.html.

It opens with an answer: of the cells with the tag "in-one-minute", the first words, the first picture and the first
widget. The notebooks follow in order, with prose, figures, tables, widgets, and what was printed. Code is folded, and
so are parameters, long logs (`page.LONG`) and warnings. See `page` for what the page needs and what it leaves out.
"""

import json
import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import nbformat

from ..environment import commit
from .page import Chapter, chapters_of, is_long, write_page

VERSIONS = ("torch", "transformers", "pyreft", "papermill")
FOLDED = {"parameters": "default parameters", "injected-parameters": "parameters of this run"}  # cell tag: label
ON_TOP = "in-one-minute"


def build_report(folder: Path, title: str) -> Path:
    """Writes folder/report.html from the executed notebooks in `folder`; returns its path."""
    chapters = chapters_of(folder)
    opening = take_opening(chapters)
    return write_page(
        folder / "report.html",
        "report.html.j2",
        title=title,
        facts=facts(folder, [chapter.notebook for chapter in chapters]),
        chapters=chapters,
        opening=opening,
        places=[place for place, _, _ in opening],
        FOLDED=FOLDED,
        is_long=is_long,
    )


def take_opening(chapters: list[Chapter]) -> list[tuple[str, Chapter, nbformat.NotebookNode]]:
    """Takes what the page opens with out of its cells: the place of the cell, its chapter, and the output."""
    taken: dict[str, tuple] = {}
    for chapter in chapters:
        for place, cell in chapter.tagged(ON_TOP):
            for output in list(cell.outputs):
                if "data" in output and (kind := _kind(output)) not in taken:
                    taken[kind] = place, chapter, output
                    cell.outputs.remove(output)
    return [taken[kind] for kind in ("words", "picture", "widget") if kind in taken]


def _kind(output: nbformat.NotebookNode) -> str:
    html = output.data.get("text/html", "")
    if "<script" in html:
        return "widget"
    return "picture" if "<img" in html or any(kind.startswith("image/") for kind in output.data) else "words"


def facts(folder: Path, notebooks: list[nbformat.NotebookNode]) -> dict[str, str]:
    """The facts at the top of the page. The devices are those in the manifests of the runs."""
    devices = set(filter(None, map(_device, folder.glob("runs/*/manifest.json"))))
    ends = [notebook.metadata.get("papermill", {}).get("end_time") for notebook in notebooks]
    last = max(filter(None, ends), default=None)
    return {
        "profile": folder.name,
        "finished": datetime.fromisoformat(last).strftime("%Y-%m-%d %H:%M %Z") if last else "",
        "device": "; ".join(sorted(devices)),
        "versions": ", ".join([f"python {platform.python_version()}", *(f"{n} {version(n)}" for n in VERSIONS)]),
        "commit": commit(folder),
    }


def _device(manifest: Path) -> str:
    """A run's device, dtype and threads, from its manifest; "" where the manifest is damaged."""
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        return f"{entries['device']}, {entries['dtype'].removeprefix('torch.')}, threads {entries['threads']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
