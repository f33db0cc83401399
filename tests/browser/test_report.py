"""The report in a browser: read, folded, enlarged and scrolled with mouse, finger and keyboard."""

import pytest

from fedreft_lib.batch.report import build_report
from tests.browser.executed import write_executed

SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("quick")
    write_executed(folder)
    return build_report(folder, "A report").as_uri()


def current(page) -> str:
    """The entry of the contents that is marked."""
    return page.locator("nav [aria-current]").inner_text()


@pytest.mark.parametrize("reader", ["page", "phone", "dark"])
def test_nothing_bars_a_reader_nor_scrolls_the_page_sideways_nor_asks_the_network(reader, report, violations, request):
    page, asked = request.getfixturevalue(reader), []
    page.on("request", lambda each: asked.append(each.url.split(":")[0]))
    page.goto(report)
    assert violations(page) == []
    page.locator("#all-code").click()
    assert violations(page) == []
    assert page.evaluate(SIDEWAYS) == 0
    assert set(asked) <= {"file", "data"}


def test_it_opens_with_an_answer_on_a_phone_and_the_contents_are_a_tap_away(phone, report):
    phone.goto(report)
    answer = phone.get_by_text("FedAvg, where clients agree.")
    assert answer.bounding_box()["y"] < 400
    entry = phone.locator("nav").get_by_role("link", name="06 Mixing")
    assert not entry.is_visible()
    phone.get_by_text("Contents", exact=True).tap()
    entry.tap()
    assert not entry.is_visible()
    top = phone.get_by_role("heading", name="06 Mixing").bounding_box()["y"]
    assert phone.locator("nav").bounding_box()["height"] < top < 300


def test_the_contents_follow_the_reader(page, report):
    page.goto(report)
    assert current(page) == "In one minute"
    for heading, entry in (("What λ does: 1 − λ",) * 2, ("06 Mixing",) * 2, ("A report", "In one minute")):
        page.locator("main").get_by_role("heading", name=heading).evaluate("each => each.scrollIntoView()")
        page.wait_for_function("name => document.querySelector('nav [aria-current]')?.innerText === name", arg=entry)
        assert page.locator("nav [aria-current]").is_visible()
    assert (
        not page.locator("nav").get_by_role("link", name="Printed").is_visible()
    )  # of a notebook that is not read now


def test_the_first_key_leads_past_the_contents(page, report):
    page.goto(report)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_one_switch_shows_all_code_and_hides_it(page, report):
    page.goto(report)
    switch = page.get_by_role("button", name="Show all code")
    code = page.locator("details.code pre")
    for shown in (True, False):
        switch.focus()
        page.keyboard.press("Space")
        assert [each.is_visible() for each in code.all()] == [shown] * code.count() and code.count() > 5
        assert switch.get_attribute("aria-pressed") == str(shown).lower()


def test_a_figure_opens_larger_with_a_key_and_escape_leads_back(page, report):
    page.goto(report)
    figure = page.get_by_role("button", name="a line that rises").last
    before = figure.locator("img").bounding_box()["width"]
    figure.focus()
    page.keyboard.press("Enter")
    full = page.get_by_role("dialog").get_by_role("img", name="a line that rises")
    assert full.bounding_box()["width"] > 1.2 * before
    page.keyboard.press("Escape")
    assert not full.is_visible() and figure.evaluate("each => each === document.activeElement")


def test_on_a_phone_a_figure_keeps_its_size_and_is_moved_inside_its_window(phone, report, violations):
    phone.goto(report)
    phone.get_by_role("button", name="a line that rises").first.tap()
    assert phone.get_by_role("dialog").get_by_role("img").bounding_box()["width"] > 700
    assert violations(phone) == []
    phone.get_by_role("button", name="Close").tap()
    assert not phone.get_by_role("dialog").is_visible()


def test_a_wide_table_is_scrolled_with_keys_and_a_narrow_one_is_no_stop_on_the_way(page, report):
    page.goto(report)
    wide = page.locator(".table", has_text="column 11")
    narrow = page.locator(".table", has_text="column 1").first
    assert narrow.get_attribute("tabindex") is None
    wide.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.activeElement.scrollLeft > 0")  # the page forbids text as code


def test_numbers_end_below_each_other_and_a_missing_one_is_a_dash(page, report):
    page.goto(report)
    table = page.locator(".table", has_text="column 1").first
    assert table.locator("tbody tr").last.inner_text().split() == ["local", "–", "–"]
    sides = table.locator("thead tr > *").evaluate_all("all => all.map(each => getComputedStyle(each).textAlign)")
    assert sides == ["left", "right", "right"]


def test_without_scripts_everything_is_there_but_what_needs_them(new_page, report):
    page = new_page(java_script_enabled=False)
    page.goto(report)
    assert not page.get_by_role("button", name="Show all code").is_visible()
    page.get_by_text("Contents", exact=True).click()
    page.locator("nav").get_by_role("link", name="Printed").click()
    assert page.get_by_text("word word").first.is_visible() and page.get_by_role("img").first.is_visible()
