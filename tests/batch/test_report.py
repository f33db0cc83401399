"""The report: everything that the notebooks show, in order, on one page that loads nothing and runs nothing of ours."""

import base64
import json
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fedreft_lib.batch.jobs import ordered_notebooks
from fedreft_lib.batch.report import build_report

PIXEL = base64.b64encode(b"\x89PNG not really").decode()


class Page(HTMLParser):
    """What a browser would make of the page, as far as these tests ask."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []  # the element around it, text
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):  # <img/>
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1], data.strip()))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def inside(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def shown(data: dict, metadata: dict | None = None) -> nbformat.NotebookNode:
    return new_output("display_data", data, metadata=metadata or {})


def cell(*outputs: nbformat.NotebookNode, source: str = "1 < 2") -> nbformat.NotebookNode:
    return new_code_cell(source, outputs=list(outputs))


@pytest.fixture
def page(tmp_path):
    """page(*cells) is the report of a folder with that notebook and another one after it."""

    def build(*cells) -> Page:
        metadata = {"papermill": {"duration": 12.4, "end_time": "2026-01-02T03:04:05+00:00"}}
        nbformat.write(new_notebook(cells=list(cells), metadata=metadata), tmp_path / "00_tour.ipynb")
        other = new_markdown_cell("# Commonsense\n\n## What you will learn")
        nbformat.write(new_notebook(cells=[other], metadata=metadata), tmp_path / "02_commonsense.ipynb")
        return Page(build_report(tmp_path, "Report of <quick>").read_text(encoding="utf-8"))

    return build


def test_only_executed_notebooks_are_taken_and_in_order(tmp_path):
    for name in ("02_b.ipynb", "00_a.ipynb", "01_c.failed.ipynb", "01_d.running.ipynb", "notes.ipynb", "00_a.py"):
        (tmp_path / name).touch()
    assert [path.name for path in ordered_notebooks(tmp_path)] == ["00_a.ipynb", "02_b.ipynb"]


def test_headings_go_one_level_down_and_the_contents_lead_to_them(page):
    prose = new_markdown_cell("# A *tour*\n\n## What you will learn\n\n### Detail\n\n## What you will learn")
    made = page(prose)
    assert made.inside("h1") == ["Report of <quick>"]
    assert made.inside("h2") == ["A", "Commonsense"]  # and an <em> in between
    assert made.inside("h3") == ["What you will learn"] * 3
    ids = [attributes["id"] for _, attributes in made.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"] for attributes in made.all("a")]
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    assert len([target for target in targets if "what-you-will-learn" in target]) == 3


def test_links_between_notebooks_stay_on_the_page(page):
    made = page(new_markdown_cell("[on](02_commonsense.ipynb), [off](exercises/x.ipynb), [out](https://arxiv.org)"))
    targets = [attributes["href"] for attributes in made.all("a")]
    assert "#02_commonsense" in targets
    assert "https://arxiv.org" in targets
    assert not any("x.ipynb" in target for target in targets)  # which is not beside the page


def test_figures_are_embedded_with_their_alternative_text(page):
    html = f'<img src="data:image/png;base64,{PIXEL}" alt="from html">'
    made = page(
        cell(shown({"image/png": PIXEL, "text/plain": "<Figure size 1x1>"}, {"image/png": {"alt": 'by "kind" & <b>'}})),
        cell(shown({"image/png": PIXEL, "text/plain": "a heat map"})),
        cell(shown({"image/png": PIXEL, "text/plain": "<Figure size 1x1>"})),
        cell(shown({"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg"/>'}, {"alt": "drawn"})),
        cell(shown({"text/html": html, "image/png": "never used"})),
    )
    assert [image["alt"] for image in made.all("img")] == [
        'by "kind" & <b>',
        "a heat map",
        "figure 3 of 00_tour",
        "drawn",
        "from html",
    ]
    assert all(image["src"].startswith("data:image/") for image in made.all("img"))


def test_code_is_folded_and_what_is_printed_is_shown_where_it_was_printed(page):
    printed = new_output("stream", name="stdout", text="step 1\rstep 2\n\x1b[31m<red>\x1b[0m & so on\r\n")
    made = page(cell(shown({"text/plain": "<b>7</b>"}), printed, source="a = '<i>' # &"))
    assert made.inside("summary") == ["Contents", "code"]
    assert made.inside("pre") == ["a = '<i>' # &", "<b>7</b>", "step 2\n<red> & so on"]


@pytest.mark.parametrize("text", ["line\n" * 21, "word " * 401])
def test_a_long_log_is_folded_and_so_is_what_went_wrong_on_the_way(page, text):
    streams = [new_output("stream", name="stdout", text=text), new_output("stream", name="stderr", text="took round 3")]
    made = page(cell(*streams))
    assert made.inside("summary") == ["Contents", "code", f"printed, {text.count(chr(10)) or 1} lines", "warnings"]
    assert made.inside("pre") == ["1 < 2", text.strip(), "took round 3"]


def test_expected_errors_are_shown_without_their_traceback(page):
    made = page(cell(new_output("error", ename="ConfigError", evalue="mixing <1>", traceback=["long"])))
    assert made.inside("pre") == ["1 < 2", "ConfigError: mixing <1>"]


def test_tables_and_widgets_keep_their_html(page):
    made = page(
        cell(shown({"text/html": '<table border="1" class="dataframe"><tr><td>3.5</td></tr></table>'})),
        cell(shown({"text/html": "<p id='w'>0</p><script>const n = 1 < 2;</script>"})),
    )
    assert "3.5" in made.inside("td")
    assert "{\nconst n = 1 < 2;\n}" in made.inside("script")


def test_page_loads_nothing_from_elsewhere(page):
    made = page(new_markdown_cell("# A tour"), cell(shown({"image/png": PIXEL})))
    policy = next(meta["content"] for meta in made.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"https?:|\*|'self'", policy)
    assert made.all("link") == made.all("iframe") == []
    assert [script for script in made.all("script") if "src" in script] == []


def test_head_says_what_made_the_results(tmp_path, page):
    manifest = {"device": "cpu", "dtype": "torch.bfloat16", "threads": 2}
    for run in ("a", "b"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "manifest.json").write_text(json.dumps(manifest))
    for run, damaged in (("c", '{"device": '), ("d", "[1]"), ("e", "{}")):
        (tmp_path / "runs" / run).mkdir()
        (tmp_path / "runs" / run / "manifest.json").write_text(damaged)
    made = page()
    facts = dict(zip(made.inside("dt"), made.inside("dd"), strict=True))
    assert facts["profile"] == tmp_path.name
    assert facts["device"] == "cpu, bfloat16, threads 2"
    assert facts["finished"] == "2026-01-02 03:04 UTC"
    assert re.match(r"python 3\.\d+\.\d+, torch 2\..*, transformers \d", facts["versions"])
    assert made.inside("td") == ["12 s", "12 s"]


def test_the_page_opens_with_words_a_picture_and_a_widget_and_the_rest_stays_in_its_notebook(page):
    tagged = cell(
        shown({"text/html": "<b>three findings</b>"}),
        shown({"image/png": PIXEL}, {"alt": "the map"}),
        shown({"image/png": PIXEL}, {"alt": "another"}),
        shown({"text/html": "<i>a widget</i><script>1</script>"}),
    )
    tagged.metadata["tags"] = ["in-one-minute"]
    made = page(new_markdown_cell("# A tour"), tagged)
    order = [text for name, text in made.texts if name in ("h2", "b", "i")]
    assert order == ["In one minute", "three findings", "a widget", "What ran", "A tour", "Commonsense"]
    assert [image["alt"] for image in made.all("img")] == ["the map", "another"]
    ids = [attributes.get("id") for _, attributes in made.elements]
    links = [a["href"] for a in made.all("a")]
    assert "#00_tour-cell-1" in links and "00_tour-cell-1" in ids  # how it was found
    assert links.count("#in-one-minute") == 2  # from the contents, and from the notebook
    assert "In one minute" not in page(new_markdown_cell("# A tour"), cell()).inside("h2")
