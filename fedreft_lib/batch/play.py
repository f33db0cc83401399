"""A small page to play with, for a screen in a class or a school's server: folder/play.html.

It has the outputs of the cells with the tag "play", each under the heading above it and the paragraph right above it.
It needs no other file; see `page` for the rest.
"""

from pathlib import Path

from .page import Chapter, Prose, chapters_of, write_page

TAG = "play"
TITLE = "FedReFT to play with"


def build_play(folder: Path) -> Path | None:
    """Writes folder/play.html from the executed notebooks in `folder`; returns its path. Without such a cell, None."""
    path = folder / "play.html"
    parts = [part for chapter in chapters_of(folder) for part in _parts(chapter)]
    if not parts:
        path.unlink(missing_ok=True)
        return None
    return write_page(path, "play.html.j2", title=TITLE, parts=parts)


class _Alone(Prose):
    """Prose without links to notebooks, which are not there."""

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, url, title) if url.startswith("http") else text


def _parts(chapter: Chapter) -> list[tuple[str, str, list[str]]]:
    """Heading, paragraph and outputs of each cell with the tag, as HTML."""
    chapter.renderer = _Alone(chapter.stem, [])
    parts, paragraph = [], ""
    for cell in chapter.cells:
        if cell.cell_type == "markdown":
            chapter.prose(cell.source)  # finds the headings
            last = cell.source.strip().split("\n\n")[-1]
            paragraph = "" if last.startswith("#") else chapter.prose(last)
        elif TAG in cell.metadata.get("tags", []):
            outputs = [chapter.shown(output) for output in cell.outputs if "data" in output]
            headings = [text.lstrip("0123456789 ") for _, _, text in chapter.renderer.headings]  # "5 A toy"
            parts += [(headings[-1] if headings else chapter.stem, paragraph, outputs)] if outputs else []
    return parts
