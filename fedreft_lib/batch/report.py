"""The executed notebooks of a profile as one page that needs nothing else: no server, no network, no kernel.

In the order of the notebooks: prose, figures, tables and widgets; code and printed text are folded; what only makes
sense while something runs (progress bars, stderr, ipywidgets without another form) is left out. A content security
policy in the page forbids the browser to load anything from elsewhere, so the page shows the same on every machine.
"""

import json
import platform
import re
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbconvert.filters.ansi import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from ..environment import commit
from ..files import write_text
from .jobs import ordered_notebooks

VERSIONS = ("torch", "transformers", "pyreft", "papermill")
FOLDED = {"parameters": "default parameters", "injected-parameters": "parameters of this run"}  # cell tag: label
WIDGET = "application/vnd.jupyter.widget-view+json"  # a live view; empty without its kernel


def build_report(folder: Path, title: str) -> Path:
    """Write folder/report.html out of the executed notebooks in `folder`; returns its path."""
    paths = ordered_notebooks(folder)
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    stems = [path.stem for path in paths]
    chapters = [_Chapter(stem, notebook, stems) for stem, notebook in zip(stems, notebooks, strict=True)]
    page = _PAGE.format(
        title=escape(title),
        style=_STYLE,
        contents="\n".join(chapter.contents() for chapter in chapters),
        facts="\n".join(
            f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts(folder, notebooks).items() if text
        ),
        seconds="\n".join(chapter.timing() for chapter in chapters),
        chapters="\n".join(chapter.html for chapter in chapters),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def facts(folder: Path, notebooks: list[nbformat.NotebookNode]) -> dict[str, str]:
    """What the results depend on besides the notebooks; devices are those that the runs name in their manifests."""
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
    """What a run's manifest says of its device; "" where the manifest is damaged."""
    try:
        said = json.loads(manifest.read_text(encoding="utf-8"))
        return f"{said['device']}, {said['dtype'].removeprefix('torch.')}, threads {said['threads']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


class _Prose(IPythonRenderer):
    """Markdown to HTML: headings go one level down and get ids, links to other notebooks stay on the page."""

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
    """One executed notebook as HTML."""

    def __init__(self, stem: str, notebook: nbformat.NotebookNode, stems: list[str]):
        self.stem = stem
        self.seconds = notebook.metadata.get("papermill", {}).get("duration")
        self.renderer = _Prose(stem, stems)
        self.figures = 0
        cells = [self._prose(c) if c.cell_type == "markdown" else self._code(c) for c in notebook.cells]
        self.title = next((text for level, _, text in self.renderer.headings if level == 1), escape(stem))
        self.html = f'<section id="{escape(stem)}">\n{"".join(cells)}</section>'

    def contents(self) -> str:
        """This chapter's entry in the table of contents."""
        parts = [
            f'<li><a href="#{escape(a)}">{text}</a></li>' for level, a, text in self.renderer.headings if level == 2
        ]
        return f'<li><a href="#{escape(self.stem)}">{self.title}</a><ul>{"".join(parts)}</ul></li>'

    def timing(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.0f} s"
        return f'<tr><td><a href="#{escape(self.stem)}">{escape(self.stem)}</a></td><td>{seconds}</td></tr>'

    def _prose(self, cell: nbformat.NotebookNode) -> str:
        self.renderer.attachments = cell.get("attachments", {})
        return self._markdown(cell.source)

    def _markdown(self, text: str) -> str:
        return MarkdownWithMath(renderer=self.renderer).render(text)

    def _code(self, cell: nbformat.NotebookNode) -> str:
        if cell.cell_type != "code" or not cell.source.strip():
            return ""
        label = next((FOLDED[tag] for tag in cell.metadata.get("tags", []) if tag in FOLDED), "code")
        printed = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
        shown = "".join(self._output(output) for output in cell.outputs if output.output_type != "stream")
        return _folded(label, cell.source) + _folded("printed", _settled(printed)) + shown

    def _output(self, output: nbformat.NotebookNode) -> str:
        """The richest form that needs no kernel; "" for a live widget that has no other."""
        if output.output_type == "error":  # of a cell tagged "raises-exception"
            return f'<pre class="error">{escape(strip_ansi(f"{output.ename}: {output.evalue}"))}</pre>\n'
        data = output.data
        if "text/html" in data:
            table = '<table border="1" class="dataframe">' in data["text/html"]
            return f'<div class="{"table" if table else "card"}">{scoped(data["text/html"])}</div>\n'
        for kind in ("image/svg+xml", "image/png", "image/jpeg"):
            if kind in data:
                return self._image(kind, data[kind], output)
        if "text/markdown" in data:
            return self._markdown(data["text/markdown"])
        if WIDGET in data or "text/plain" not in data:
            return ""
        return f"<pre>{escape(strip_ansi(data['text/plain']))}</pre>\n"

    def _image(self, kind: str, content: str, output: nbformat.NotebookNode) -> str:
        """An image of any kind as a data URI: an SVG there has no ids or styles that could meet the page's."""
        self.figures += 1
        metadata = output.get("metadata", {})
        plain = output.data.get("text/plain", "")
        fallback = f"figure {self.figures} of {self.stem}" if plain.startswith("<") or not plain else plain
        alt = metadata.get(kind, {}).get("alt") or metadata.get("alt") or fallback
        if kind == "image/svg+xml":
            source = f"data:{kind},{quote(content)}"
        else:
            source = f"data:{kind};base64,{''.join(content.split())}"
        return f'<div class="card"><img src="{source}" alt="{escape(alt)}"></div>\n'


def scoped(html: str) -> str:
    """HTML whose inline scripts run each in a block, so that `const` and `let` of one do not meet another's.

    Functions of a block stay reachable for onclick and the like. Modules have a scope already, and other types
    (JSON) are no programs.
    """

    def block(match: re.Match) -> str:
        opening, attributes, program, closing = match.groups()
        foreign = re.search(r"\b(type|src)\s*=", attributes) and "text/javascript" not in attributes
        return match.group() if foreign else f"{opening}{{\n{program}\n}}{closing}"

    return re.sub(r"(<script\b([^>]*)>)(.*?)(</script\s*>)", block, html, flags=re.DOTALL | re.IGNORECASE)


def _folded(label: str, text: str) -> str:
    if not text.strip():
        return ""
    return f"<details><summary>{label}</summary><pre>{escape(text.strip())}</pre></details>\n"


def _settled(printed: str) -> str:
    """Printed text as a terminal would show it in the end: a carriage return starts the line anew."""
    lines = strip_ansi(printed).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #59636e; --line: #d1d9e0; --fill: #f6f8fa;
  --link: #0550ae; --mark: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15181c; --soft: #9aa4af; --line: #363c44;
  --fill: #1e2227; --link: #79b8ff; --mark: #e69f00; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0 auto; padding: 0 1.5rem; max-width: 90em; color: var(--ink); background: var(--paper);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  display: grid; grid-template-columns: minmax(12rem, 17rem) minmax(0, 70em); gap: 3rem; justify-content: center; }
nav { position: sticky; top: 0; max-height: 100vh; overflow-y: auto; padding: 2rem 0; font-size: 0.875rem;
  line-height: 1.4; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li { margin: 0.35rem 0; }
nav > ul > li { margin-top: 1rem; font-weight: 600; }
nav ul ul { padding-left: 0.8rem; border-left: 2px solid var(--line); font-weight: 400; }
nav a { color: inherit; text-decoration: none; }
nav a:hover { color: var(--link); text-decoration: underline; }
main { padding: 2rem 0 6rem; min-width: 0; }
h1, h2, h3, h4, h5, h6 { line-height: 1.25; margin: 2em 0 0.6em; }
h1 { margin-top: 0; font-size: 2rem; }
section { border-top: 3px solid var(--mark); margin-top: 4rem; }
section > h2 { margin-top: 1em; font-size: 1.7rem; }
h3 { font-size: 1.3rem; }
main > section > p, main > section > ul, main > section > ol, blockquote { max-width: 46em; }
a { color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1.2rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.875em; }
code { background: var(--fill); padding: 0.1em 0.3em; border-radius: 4px; }
pre { background: var(--fill); padding: 0.8rem 1rem; border-radius: 6px; overflow-x: auto; line-height: 1.45; }
pre code { padding: 0; background: none; }
pre.error { border-left: 4px solid var(--mark); }
blockquote { margin: 1em 0; padding: 0 1em; border-left: 4px solid var(--line); color: var(--soft); }
details { margin: 0.4rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: 0.8rem; width: max-content; }
img, svg { max-width: 100%; }
img { height: auto; }
table { border-collapse: collapse; border: 0; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { border: 0; border-bottom: 1px solid var(--line); padding: 0.3em 0.8em; }
thead th { border-bottom: 2px solid var(--soft); text-align: left; }
.dataframe td { text-align: right; max-width: 32em; }
.dataframe thead th { text-align: right; white-space: nowrap; }
.dataframe tbody th { text-align: left; font-weight: 500; }
tbody tr:hover { background: var(--fill); }
.table, .card { margin: 1rem 0; overflow-x: auto; }
.card { color-scheme: light; color: #1b1f24; background: #fff; border-radius: 6px; }
@media (prefers-color-scheme: dark) { .card { padding: 0.8rem; } .card tbody tr:hover { background: #f6f8fa; } }
@media (max-width: 60em) { body { display: block; } nav { position: static; max-height: none; } }
@media print { body { display: block; max-width: none; font-size: 11pt; } nav, details { display: none; }
  section { break-before: page; } .table, .card, pre { overflow: visible; } .card, img, tr { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; font-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<nav aria-label="contents"><ul>
<li><a href="#top">{title}</a></li>
{contents}
</ul></nav>
<main id="top">
<h1>{title}</h1>
<dl>
{facts}
</dl>
<table>
<thead><tr><th>notebook</th><th>time</th></tr></thead>
<tbody>
{seconds}
</tbody>
</table>
{chapters}
</main>
</body>
</html>
"""
