"""Outputs on the page: tables that read well, pictures with the same pixels in fewer bytes, scripts apart."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from fedreft_lib.batch.markup import fit, smaller


def table(frame: pd.DataFrame) -> BeautifulSoup:
    return BeautifulSoup(fit(frame._repr_html_()), "html.parser")


def rows(soup: BeautifulSoup) -> list[list[str]]:
    return [[cell.get_text(strip=True) for cell in row.find_all(["th", "td"])] for row in soup.find_all("tr")]


def test_numbers_are_marked_text_is_not_and_what_is_missing_is_a_dash():
    frame = pd.DataFrame({
        "method": ["FedAvg", None], "score": [1.5, float("nan")], "interval": ["0.3 (-0.1 to 1e-05)", "–"],
        "λ": [0.1, "adaptive"], "share": ["12.5 %", "1,234"], "only": [None, None],
    })  # fmt: skip
    found = table(frame)
    assert rows(found)[2] == ["1", "–", "–", "–", "adaptive", "1,234", "–"]
    marked = {cell.get_text(strip=True) for cell in found.select("thead .number")}
    assert marked == {"", "score", "interval", "share"}  # "" is the column of row numbers
    assert found.select_one("div.table > table").get("border") is None and not found.find("style")


def test_no_header_is_empty_and_names_of_the_index_share_the_row_of_the_columns():
    frame = pd.DataFrame({"mean": [1.0, 2.0, 3.0]}, index=pd.MultiIndex.from_tuples(
        [("iid", "a"), ("iid", "b"), ("distinct", "a")], names=["setup", "method"]))  # fmt: skip
    found = table(frame)
    assert rows(found)[0] == ["setup", "method", "mean"] and len(found.select("thead tr")) == 1
    assert [cell.get_text(strip=True) for cell in found.select(".number")] == ["mean", "1.0", "2.0", "3.0"]
    two_levels = table(frame.T.describe())  # two levels of columns, and a nameless index
    assert all(cell.get_text(strip=True) for cell in two_levels.find_all("th"))
    assert [row[:1] for row in rows(two_levels)[:2]] == [["setup"], ["method"]]


def test_a_table_without_rows_becomes_a_sentence():
    assert table(pd.DataFrame({"a": []})).find("table") is None
    assert "No rows" in fit(pd.DataFrame({"a": []})._repr_html_())


def test_pictures_keep_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    kind, data = smaller(base64.b64encode(file.getvalue()).decode()).split(",")
    assert kind == "data:image/webp;base64"
    again = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
    assert np.array_equal(np.asarray(again), pixels)


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<script>let a</script><SCRIPT>let a</SCRIPT>", "<script>{\nlet a\n}</script>" * 2),
        (
            '<script type="text/javascript">a && "<b>"</script>',
            '<script type="text/javascript">{\na && "<b>"\n}</script>',
        ),
        ('<script type="application/json">{}</script>', None),
        ('<script type="module">let a</script>', None),
        ("<p>no script &amp; no tags: a.txt</p>", None),
        ("plain.txt", None),
    ],
)
def test_each_script_has_a_scope_of_its_own_and_other_html_stays(html, expected):
    assert fit(html) == (expected or html)
