"""nbconvert's settings for slides: the cells with a tag, figures and tables without their code, in a page of its own.

    slide      begins a slide          subslide   begins one below it          notes   is for the speaker (key S)

A cell of prose puts its heading and first paragraph on the slide, with the formula, table or list that follows; the
rest becomes notes. Cells without such a tag are left out. reveal.js comes out of the package sphinx-revealjs, of which
nothing else is used, and is written into the page, so that it needs no network.
"""

from importlib.util import find_spec
from pathlib import Path

from nbconvert.preprocessors import Preprocessor
from nbformat.v4 import new_markdown_cell

KINDS = ("slide", "subslide", "notes")
SHOWN = ("text/html", "image/png", "image/svg+xml", "text/plain")


class TaggedCells(Preprocessor):
    """Keeps the cells with a tag of KINDS and says on which slide each is."""

    def preprocess(self, nb, resources):
        kept = []
        for cell in nb.cells:
            kind = next((kind for kind in KINDS if kind in cell.metadata.get("tags", ())), None)
            if kind and cell.cell_type == "markdown" and kind != "notes":
                kept += prose(cell.source, kind)
            elif kind and (cell.cell_type == "markdown" or shown(cell)):
                kept.append(with_kind(cell, kind))
        nb.cells = kept
        return nb, resources


def with_kind(cell, kind):
    cell.metadata["slideshow"] = {"slide_type": kind}
    return cell


def prose(source, kind):
    """The cells for a text: what stands before its heading, the slide, and the rest."""
    blocks = source.split("\n\n")
    start = next((i for i, block in enumerate(blocks) if block.startswith("#")), 0)
    end = start + (2 if blocks[start].startswith("#") else 1)
    while end < len(blocks) and blocks[end].startswith(("    ", "|", "* ", "1. ")):
        end += 1
    parts = [(blocks[:start], "notes"), (blocks[start:end], kind), (blocks[end:], "notes")]
    return [with_kind(new_markdown_cell("\n\n".join(part)), each) for part, each in parts if part]


def shown(cell):
    """Whether the cell has results to show; errors, warnings and finished progress bars are dropped."""
    cell.outputs = [
        output for output in cell.get("outputs", [])
        if output.get("name") == "stdout" or any(kind in SHOWN for kind in output.get("data", ()))
        and "application/vnd.jupyter.widget-view+json" not in output["data"]
    ]  # fmt: skip
    return bool(cell.outputs)


revealjs = find_spec("sphinx_revealjs")
if revealjs is None:
    raise SystemExit("Slides need reveal.js: .venv/bin/pip install --no-deps sphinx-revealjs==3.2.1")

c = get_config()  # noqa: F821, nbconvert defines it
c.NbConvertApp.export_format = "slides"
c.SlidesExporter.preprocessors = [TaggedCells]
c.SlidesExporter.exclude_input = True
c.SlidesExporter.exclude_output_prompt = True
c.SlidesExporter.extra_template_basedirs = [str(Path(__file__).parent)]
c.SlidesExporter.extra_template_paths = [str(Path(revealjs.origin).parent / "_static" / "revealjs")]
c.SlidesExporter.template_name = "offline"
