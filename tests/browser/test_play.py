"""play.html in a browser."""

import pytest

from fedreft_lib.batch.play import build_play
from tests.browser.executed import write_executed


@pytest.fixture(scope="module")
def play(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("quick")
    write_executed(folder)
    return build_play(folder).as_uri()


@pytest.mark.parametrize("reader", ["page", "phone", "dark"])
def test_there_is_a_toy_to_move_and_nothing_in_the_way(reader, play, violations, request):
    page = request.getfixturevalue(reader)
    page.goto(play)
    assert [each.inner_text() for each in page.get_by_role("heading").all()] == ["FedReFT to play with", "A toy"]
    assert page.get_by_text("Drag client 5.").is_visible()
    page.get_by_label("λ").press("ArrowRight")
    assert page.locator("[data-part=lam-value]").inner_text() == "0.51"
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
