"""What the pages that are made from executed notebooks have in common: report.py and play.py.

A page needs no server, no network and no kernel. A content security policy in it forbids the browser to load anything
from elsewhere, so it looks the same on every machine. Live widgets without another form, and progress bars, are left
out (record.py). The templates, page.css and page.js are beside this file.
"""

import re
from html import escape
from pathlib import Path
from urllib.parse import quote

import jinja2
import nbformat
from nbconvert.filters.ansi import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from ..files import write_text
from .jobs import ordered_notebooks
from .markup import fit, smaller
from .record import settle

IMAGES = ("image/svg+xml", "image/png", "image/jpeg")  # the first that an output has is shown
LONG = 20, 2000  # lines and characters; what is printed beyond that is folded


def write_page(path: Path, template: str, **content: object) -> Path:
    """Renders a template of this folder with `content`, and writes the page."""
    pages = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    pages.filters.update(strip_ansi=strip_ansi)
    write_text(path, pages.get_template(template).render(**content))
    return path


def chapters_of(folder: Path) -> list["Chapter"]:
    """The executed notebooks of a folder, in order."""
    paths = ordered_notebooks(folder)
    stems = [path.stem for path in paths]
    return [Chapter(path.stem, nbformat.read(path, as_version=4), stems) for path in paths]


class Prose(IPythonRenderer):
    """Markdown to HTML. Headings go one level down and get ids; links to other notebooks stay on the page."""

    def __init__(self, chapter: str, chapters: list[str]):
        super().__init__(escape=False)
        self.chapter, self.chapters = chapter, chapters
        self.headings: list[tuple[int, str, str]] = []  # level, id, HTML
        self.taken: set[str] = set()  # ids

    def heading(self, text: str, level: int, **_: object) -> str:
        words = re.sub(r"<[^>]+>|&\w+;", "", text)
        anchor = self.chapter + "-" + re.sub(r"\W+", "-", words).strip("-").lower()
        if anchor in self.taken:
            anchor += f"-{len(self.taken)}"
        self.taken.add(anchor)
        self.headings.append((level, anchor, re.sub(r"</?a\b[^>]*>", "", text)))
        down = min(level + 1, 6)
        return f'<h{down} id="{escape(anchor)}">{text}</h{down}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        stem = url.removesuffix(".ipynb")
        if stem != url and stem not in self.chapters:
            return text  # this notebook was not executed
        return super().link(text, f"#{stem}" if stem != url else url, title)


class Chapter:
    """One executed notebook, as the templates use it."""

    def __init__(self, stem: str, notebook: nbformat.NotebookNode, stems: list[str]):
        settle(notebook)
        self.stem, self.notebook, self.cells, self.figures = stem, notebook, notebook.cells, 0
        seconds = notebook.metadata.get("papermill", {}).get("duration")
        self.time = "" if seconds is None else f"{seconds:.0f} s"
        self.renderer = Prose(stem, stems)

    @property
    def title(self) -> str:
        """The first heading, as HTML."""
        return next((text for level, _, text in self.renderer.headings if level == 1), escape(self.stem))

    def place(self, number: int) -> str:
        """The id of a cell on the page."""
        return f"{self.stem}-cell-{number}"

    def tagged(self, tag: str) -> list[tuple[str, nbformat.NotebookNode]]:
        """The code cells with a tag, each with its place."""
        numbered = [(self.place(number), cell) for number, cell in enumerate(self.cells) if cell.cell_type == "code"]
        return [(place, cell) for place, cell in numbered if tag in cell.metadata.get("tags", [])]

    def prose(self, text: str, attachments: dict | None = None) -> str:
        """Markdown as HTML."""
        self.renderer.attachments = attachments or {}
        return fit(MarkdownWithMath(renderer=self.renderer).render(text))

    def shown(self, output: nbformat.NotebookNode) -> str:
        """The richest form of a figure, table, widget or value, as HTML."""
        data = output.data
        image = next((kind for kind in IMAGES if kind in data), None)
        if "text/html" in data:
            html = fit(data["text/html"])
            return f'<div class="{"card" if in_own_colours(html) else "output"}">{html}</div>'
        if image is not None:
            source, alt = _data_uri(data[image], image), escape(self._alt(output, image))
            return f'<div class="card"><img src="{source}" alt="{alt}" decoding="async"></div>'
        if "text/markdown" in data:
            return self.prose(data["text/markdown"])
        return f"<pre>{escape(strip_ansi(data.get('text/plain', '')))}</pre>"

    def _alt(self, output: nbformat.NotebookNode, kind: str) -> str:
        """The alternative text of the next figure."""
        self.figures += 1
        metadata, plain = output.get("metadata", {}), output.data.get("text/plain", "")
        fallback = f"figure {self.figures} of {self.stem}" if plain.startswith("<") or not plain else plain
        return metadata.get(kind, {}).get("alt") or metadata.get("alt") or fallback


def in_own_colours(html: str) -> bool:
    """Whether HTML was made for white paper: a picture, a widget, or a table with a style of its own."""
    return bool(re.search(r"<(img|svg|script|style)\b", html))


def is_long(printed: str) -> bool:
    lines, characters = LONG
    return printed.count("\n") > lines or len(printed) > characters


def _data_uri(content: str, kind: str) -> str:
    """An image as a data URI. In it, an SVG's ids and styles cannot collide with the page's."""
    if kind == "image/svg+xml":
        return f"data:{kind},{quote(content)}"
    return smaller(content) if kind == "image/png" else f"data:{kind};base64,{''.join(content.split())}"
