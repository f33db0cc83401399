"""The executed notebooks of a profile as one page that needs no server, no network and no kernel.

It opens with the outputs of cells with the tag "in-one-minute". The notebooks follow in order, with prose, figures,
tables and widgets. Code and printed text are folded. Progress bars, stderr and ipywidgets without another form are left
out: they make sense only while a kernel runs. A content security policy in the page forbids the browser to load
anything from elsewhere, so the page looks the same on every machine. The page is made from the Jinja template
`report.html.j2`.
"""

import json
import platform
import re
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import jinja2
import nbformat
from nbconvert.filters.ansi import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from ..environment import commit
from ..files import write_text
from .jobs import ordered_notebooks

VERSIONS = ("torch", "transformers", "pyreft", "papermill")
FOLDED = {"parameters": "default parameters", "injected-parameters": "parameters of this run"}  # cell tag: label
IMAGES = ("image/svg+xml", "image/png", "image/jpeg")  # the first that an output has is shown
TABLE = '<table border="1" class="dataframe">'  # as pandas writes it
ON_TOP = "in-one-minute"  # tag of cells whose outputs the page opens with
WIDGET = "application/vnd.jupyter.widget-view+json"  # a live view; empty without its kernel


def build_report(folder: Path, title: str) -> Path:
    """Writes folder/report.html from the executed notebooks in `folder`; returns its path."""
    paths = ordered_notebooks(folder)
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    stems = [path.stem for path in paths]
    chapters = [_Chapter(stem, notebook, stems) for stem, notebook in zip(stems, notebooks, strict=True)]
    path = folder / "report.html"
    write_text(path, _template().render(title=title, facts=facts(folder, notebooks), chapters=chapters))
    return path


def _template() -> jinja2.Template:
    page = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page.globals.update(FOLDED=FOLDED, IMAGES=IMAGES, ON_TOP=ON_TOP, TABLE=TABLE, WIDGET=WIDGET)
    page.filters.update(data_uri=_data_uri, scoped=scoped, settled=_settled, strip_ansi=strip_ansi)
    return page.get_template("report.html.j2")


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


class _Prose(IPythonRenderer):
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
        return super().link(text, f"#{stem}" if stem != url and stem in self.chapters else url, title)


class _Chapter:
    """One executed notebook, as the template uses it."""

    def __init__(self, stem: str, notebook: nbformat.NotebookNode, stems: list[str]):
        self.stem, self.cells, self.figures = stem, notebook.cells, 0
        seconds = notebook.metadata.get("papermill", {}).get("duration")
        self.time = "" if seconds is None else f"{seconds:.0f} s"
        self.renderer = _Prose(stem, stems)

    @property
    def title(self) -> str:
        """The first heading, as HTML."""
        return next((text for level, _, text in self.renderer.headings if level == 1), escape(self.stem))

    def prose(self, text: str, attachments: dict | None = None) -> str:
        """Markdown as HTML."""
        self.renderer.attachments = attachments or {}
        return MarkdownWithMath(renderer=self.renderer).render(text)

    def alt(self, output: nbformat.NotebookNode, kind: str) -> str:
        """The alternative text of the next figure."""
        self.figures += 1
        metadata, plain = output.get("metadata", {}), output.data.get("text/plain", "")
        fallback = f"figure {self.figures} of {self.stem}" if plain.startswith("<") or not plain else plain
        return metadata.get(kind, {}).get("alt") or metadata.get("alt") or fallback


def scoped(html: str) -> str:
    """HTML with each inline script in its own block, so that `const` and `let` of two scripts do not collide.

    Functions in a block stay reachable for onclick and the like. Modules have their own scope already, and other types
    (JSON) are no programs.
    """

    def block(match: re.Match) -> str:
        opening, attributes, program, closing = match.groups()
        foreign = re.search(r"\b(type|src)\s*=", attributes) and "text/javascript" not in attributes
        return match.group() if foreign else f"{opening}{{\n{program}\n}}{closing}"

    return re.sub(r"(<script\b([^>]*)>)(.*?)(</script\s*>)", block, html, flags=re.DOTALL | re.IGNORECASE)


def _data_uri(content: str, kind: str) -> str:
    """An image as a data URI. In it, an SVG's ids and styles cannot collide with the page's."""
    return f"data:{kind},{quote(content)}" if kind == IMAGES[0] else f"data:{kind};base64,{''.join(content.split())}"


def _settled(printed: str) -> str:
    """Printed text in its final form: the text after a carriage return replaces the line before it."""
    lines = strip_ansi(printed).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
