"""The style flip book, in a page and in JupyterLab, by keyboard, mouse and finger."""

import pandas as pd
import pytest

from fedreft_lib.workbook import style_book

from .small_notebook import ACTIVE, run_in_lab

TEXTS = pd.DataFrame([
    (lam, client, client, question, client, text)
    for client, own in (("tale", "Once upon a time"), ("steps", "1. Wait <b>"))
    for question in ("Why?", "</script>How?")
    for lam, text in ((0.0, f"{own} {question}"), (0.5, "So it is."), (1.0, "Topic: ice"))
], columns=["lam", "client", "task", "question", "reference", "written"])  # fmt: skip
PAGE = """<!doctype html><html lang="en"><head><title>book</title><meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width"></head>
<body style="background: Canvas; color: CanvasText"><main><h1>Book</h1>{}</main></body></html>"""
BODY = ".fedreft-style-book"


def book() -> str:
    return style_book.flip_book(TEXTS).data


def texts(page) -> list[str]:
    return page.locator(f"{BODY} .text").all_inner_texts()


def strip(page, at: float) -> dict[str, float]:
    """A place on the first client's strip, from 0 to 1."""
    box = page.locator(f"{BODY} .strip").first.bounding_box()
    return {"x": box["x"] + at * box["width"], "y": box["y"] + box["height"] / 2}


def test_arrow_keys_turn_the_book_and_any_text_is_shown_as_text(page):
    page.set_content(PAGE.format(book()))
    assert texts(page) == ["Once upon a time Why?", "1. Wait <b> Why?"]
    page.get_by_role("slider").press("ArrowRight")
    assert texts(page) == ["So it is."] * 2
    assert "At λ 0.5, 0 of 2 answers are in the client's own style; of all 4 in this book, 0." in page.content()
    page.get_by_role("slider").press("End")
    assert page.locator(f"{BODY} .chip").all_inner_texts() == ["◆ card"] * 2
    page.get_by_role("slider").press("Home")
    page.get_by_label("question").select_option("2")
    assert texts(page)[1] == "1. Wait <b> </script>How?"
    told = page.locator(f"{BODY} .strip").first.get_attribute("aria-label")
    assert told == "tale: tale from λ 0, no known style from λ 0.5, card from λ 1"


def test_a_mouse_drags_through_the_book(page):
    page.set_content(PAGE.format(book()))
    page.mouse.move(**strip(page, 0.1))
    page.mouse.down()
    page.mouse.move(**strip(page, 0.9))
    page.mouse.up()
    assert texts(page) == ["Topic: ice"] * 2


def test_a_finger_turns_the_book_on_a_phone_that_need_not_be_scrolled_sideways(phone):
    phone.set_content(PAGE.format(book()))
    phone.touchscreen.tap(**strip(phone, 0.5))
    assert texts(phone) == ["So it is."] * 2
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(new_page, violations, scheme):
    page = new_page(color_scheme=scheme)
    page.set_content(PAGE.format(book()))
    for key in ("Home", "ArrowRight", "End"):  # each style
        page.get_by_role("slider").press(key)
        assert violations(page) == []


def test_without_scripts_there_is_a_sentence(new_page):
    page = new_page(java_script_enabled=False)
    page.set_content(PAGE.format(book()))
    assert "A flip book" in page.locator(BODY).inner_text() and page.locator("input").count() == 0


def test_keys_and_a_mouse_turn_the_book_in_jupyterlab_and_leave_the_cells_alone(page, start_lab, tmp_path):
    run_in_lab(page, start_lab, tmp_path, "1", f"from IPython.display import HTML\nHTML({book()!r})", "2")
    page.get_by_role("slider").focus()
    here = page.evaluate(ACTIVE)
    page.keyboard.press("ArrowUp")
    assert texts(page) == ["So it is."] * 2
    page.keyboard.press("ArrowDown")
    assert texts(page)[0] == "Once upon a time Why?"
    assert page.evaluate(ACTIVE) == here
    page.mouse.move(**strip(page, 0.1))
    page.mouse.down()
    page.mouse.move(**strip(page, 0.9))
    page.mouse.up()
    assert texts(page) == ["Topic: ice"] * 2
