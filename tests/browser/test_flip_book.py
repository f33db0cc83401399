"""The flip book's slider obeys mouse, finger and keyboard, in a page and in JupyterLab."""

import pytest

from fedreft_lib.workbook import widgets

from .small_notebook import ACTIVE, run_in_lab

FRAMES = {"0.0": "<p>own</p>", "0.5": "<p>half</p>", "1.0": "<p>the others'</p>"}
PAGE = '<!doctype html><html lang="en"><title>A flip book</title><meta name="viewport" content="width=device-width">'


def book_on(page):
    page.set_content(f"{PAGE}<main><h1>A flip book</h1>{widgets.flip_book(FRAMES, 'λ').data}</main>")
    return page.locator(".fedreft-flip-book")


def shown(book):
    return book.locator("output").inner_text(), book.locator("[data-frame]:visible").inner_text()


def test_a_click_a_key_and_a_touch_turn_to_a_frame(page, phone):
    book = book_on(page)
    assert shown(book) == ("0.0", "own")
    book.get_by_role("slider").click()
    assert shown(book) == ("0.5", "half")
    page.keyboard.press("End")
    assert shown(book) == ("1.0", "the others'")

    book = book_on(phone)
    box = book.get_by_role("slider").bounding_box()
    phone.touchscreen.tap(box["x"] + box["width"] - 6, box["y"] + box["height"] / 2)
    assert shown(book) == ("1.0", "the others'")


@pytest.mark.parametrize("looks", ["page", "dark"])
def test_no_rule_of_accessibility_is_broken(looks, request, violations):
    page = request.getfixturevalue(looks)
    book_on(page)
    assert not violations(page)


def test_arrow_keys_stay_in_the_flip_book_in_jupyterlab(page, start_lab, tmp_path):
    code = f"from fedreft_lib.workbook import widgets\nwidgets.flip_book({FRAMES!r}, 'λ')"
    run_in_lab(page, start_lab, tmp_path, "1", code, "2")
    book = page.locator(".fedreft-flip-book")
    book.get_by_role("slider").click()
    here = page.evaluate(ACTIVE)
    page.keyboard.press("ArrowDown")
    assert shown(book) == ("0.0", "own")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert shown(book) == ("1.0", "the others'")
    assert page.evaluate(ACTIVE) == here
