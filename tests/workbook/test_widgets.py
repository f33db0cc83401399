"""The widgets compute what the library computes, and stand on their own in a page without kernel or network."""

import json
import re
import shutil
import subprocess

import pytest
import torch

from fedreft_lib.core.aggregation import all_but_me, mean
from fedreft_lib.core.mixing import mix
from fedreft_lib.workbook import figures, widgets

PLANES = {
    "toy": widgets.TOY,
    "median on a point": ((0, 0), (1, 0), (0, 1), (0.3, 0.3), (5, 5)),
    "median next to a point": ((0, 0), (1, 0), (-0.4985, 0.8669), (3, 3)),  # plain steps: 11,500 for client 4's
    "three clients": ((0, 0), (1, 0), (4, 2)),
    "on a line": ((0, 0), (1, 1), (2, 2), (9, 9)),
    "two clients in one place": ((1, 1), (1, 1), (3, 0), (0, 4), (8, 8)),
    "all in one place": ((2, 2),) * 4,
}


@pytest.mark.skipif(shutil.which("node") is None, reason="the widget's script is run by node, which is not here")
@pytest.mark.parametrize("points", PLANES.values(), ids=PLANES)
def test_toy_script_agrees_with_the_library(points):
    rules = {"fedavg": mean, "mean": lambda X: all_but_me(X, "mean"), "median": all_but_me}
    ask = "const points = {}; console.log(JSON.stringify({}.map((rule) => points.map((_, k) => {}))));".format(
        json.dumps(points), json.dumps(list(rules)), "receive(points, k, rule, 0.3)"
    )
    script = (widgets.HERE / "widgets_toy.js").read_text(encoding="utf-8")
    answer = subprocess.run(["node", "-e", script + ask], capture_output=True, text=True, check=True, timeout=60)
    X = torch.tensor(points, dtype=torch.float64)
    for found, (rule, aggregate) in zip(json.loads(answer.stdout), rules.items(), strict=True):
        expected = aggregate(X)
        ends = mix(X, expected.A, 1.0 if rule == "fedavg" else 0.3)
        for k, row in enumerate(found):
            assert row["weights"] == pytest.approx(expected.A[k].tolist(), abs=1e-6)
            assert row["received"] == pytest.approx(expected.aggregate[k].tolist(), abs=1e-6)
            assert row["end"] == pytest.approx(ends[k].tolist(), abs=1e-6)


def test_two_toys_on_a_page_do_not_meet():
    first, second = (re.findall(r'data-fedreft="(\w+)"', widgets.lam_toy().data) for _ in range(2))
    assert len(set(first)) == len(set(second)) == 1 and set(first).isdisjoint(second)


def test_html_widgets_ask_the_network_for_nothing():
    pages = [widgets.lam_toy().data, widgets.flip_book({"0.5": "<p>half</p>"}, "lam").data]
    for page in pages:
        names = set(re.findall(r"https?://[^\"' ]+", page)) - {"http://www.w3.org/2000/svg"}  # a name, not an address
        assert not names and not re.search(r"<(link|iframe)|src=|@import|fetch\(|require\(", page)


def test_flip_book_shows_the_first_frame_and_names_all():
    figure = figures.toy_plane(torch.tensor(widgets.TOY))
    page = widgets.flip_book({"0.0": figure, "<1>": "<p>all</p>"}, "lam").data
    assert '<div data-frame="0.0"><img' in page and 'alt="lam 0.0"' in page
    assert '<div data-frame="&lt;1&gt;" hidden><p>all</p></div>' in page
    assert re.search(r"<noscript>lam 0\.0\..*&lt;1&gt;\.</noscript>", page)
    with pytest.raises(ValueError, match="at least one frame"):
        widgets.flip_book({}, "lam")


def test_no_value_can_end_the_script_of_its_page():
    page = widgets.page("toy", "", "</script><!-- <b>")
    assert page.data.count("</script>") == page.data.count("<script>") == 1
    assert json.loads(re.search(r"start\(root, \.\.\.(.*)\)\);", page.data)[1]) == ["</script><!-- <b>"]
