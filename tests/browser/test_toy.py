"""The toy federation obeys mouse, finger and keyboard, in a page and in JupyterLab."""

import pytest

from fedreft_lib.workbook import widgets

from .small_notebook import ACTIVE, run_in_lab

TOY = "from fedreft_lib.workbook import widgets\nwidgets.lam_toy()"
# What shows that a control has done its work.
SHOWN = "(root) => root.querySelector('caption').textContent + root.querySelector('[data-part=marks]').innerHTML"
KEYS = {"slider": "ArrowRight", "choice": "ArrowDown", "button": "Enter", "check box": "Space", "client": "ArrowUp"}
PAGE = """<!doctype html><html lang="en"><title>Toy</title><meta name="viewport" content="width=device-width">
<main><h1>Toy</h1>{}<p style="height: 3000px">below</p></main>"""


def toy_on(page):
    page.set_content(PAGE.format(widgets.lam_toy().data))
    return page.locator(".fedreft-toy")


def control(toy, name):
    return {
        "slider": toy.get_by_role("slider", name="λ"),
        "choice": toy.get_by_role("combobox"),
        "button": toy.get_by_role("button"),
        "check box": toy.get_by_label("geometric median"),
        "client": toy.get_by_role("slider", name="client 4"),
    }[name]


def middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag_by_finger(page, start, end):
    """What a screen sends for one finger; unlike events made in the page, it scrolls where nobody prevents that."""
    finger = page.context.new_cdp_session(page)
    places = [[a + (b - a) * step / 8 for a, b in zip(start, end, strict=True)] for step in range(9)]
    for kind, place in [("touchStart", places[0]), *(("touchMove", each) for each in places), ("touchEnd", None)]:
        points = [{"x": place[0], "y": place[1]}] if place else []
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def press(toy, name):
    """Presses the control's key, and says whether the toy has followed. "put all back" has something to put back."""
    if name == "button":
        control(toy, "client").press("ArrowUp")
    before = toy.evaluate(SHOWN)
    control(toy, name).press(KEYS[name])
    return toy.evaluate(SHOWN) != before


@pytest.mark.parametrize("name", KEYS)
def test_every_control_obeys_its_key_in_a_page(page, name):
    toy = toy_on(page)
    assert press(toy, name)


def test_tab_reaches_every_control_and_gets_through(page):
    toy = toy_on(page)
    reached = []
    while len(reached) < 20:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.part || document.activeElement.tagName"))
        if reached[-1] == "BODY":
            break
    assert reached == ["lam", "client", "reset", "fedavg", "mean", "median", *["g"] * len(widgets.TOY), "BODY"]
    assert toy.count() == 1


def test_every_control_obeys_the_mouse_and_a_click_keeps_the_slider_in_focus(page):
    toy = toy_on(page)
    control(toy, "slider").click()
    page.keyboard.press("ArrowLeft")
    assert toy.locator("caption").inner_text() == "Client 1 is at (0.90, 0.90), with λ 0.49"
    lines = toy.locator("line").count()
    control(toy, "check box").click()
    assert toy.locator("line").count() == lines * 2 / 3

    x, y = middle(control(toy, "client"))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 72, y, steps=3)  # 600 units are 720 pixels here, and 60 units are 1
    page.mouse.up()
    assert toy.locator("caption").inner_text() == "Client 4 is at (3.90, 3.20), with λ 0.49"
    control(toy, "button").click()
    assert toy.locator("caption").inner_text() == "Client 4 is at (2.90, 3.20), with λ 0.49"


def test_every_control_obeys_a_finger_and_a_client_moves_without_the_page(phone):
    toy = toy_on(phone)
    for name in ("slider", "check box"):
        before = toy.evaluate(SHOWN)
        box = control(toy, name).bounding_box()
        phone.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
        assert toy.evaluate(SHOWN) != before

    x, y = middle(control(toy, "client"))
    drag_by_finger(phone, (x + 9, y + 9), (x + 49, y + 69))  # a finger is not exact
    assert "Client 4 is at (2.90, 3.20)" not in toy.locator("caption").inner_text()
    assert phone.evaluate("scrollY") == 0
    phone.touchscreen.tap(*middle(control(toy, "button")))
    assert "Client 4 is at (2.90, 3.20)" in toy.locator("caption").inner_text()

    drag_by_finger(phone, (200, 700), (200, 300))
    phone.wait_for_function("() => scrollY > 100")  # elsewhere the same drag scrolls


@pytest.mark.parametrize("looks", ["phone", "dark"])
def test_no_rule_of_accessibility_is_broken(looks, request, violations):
    page = request.getfixturevalue(looks)
    toy_on(page)
    assert not violations(page)


def test_the_toy_fits_a_phone(phone):
    toy_on(phone)
    assert phone.evaluate("document.documentElement.scrollWidth") == 390


def test_keys_stay_in_the_toy_in_jupyterlab_and_its_commands_still_run(page, start_lab, tmp_path):
    run_in_lab(page, start_lab, tmp_path, "1", TOY, "2")
    toy = page.locator(".fedreft-toy")
    control(toy, "slider").click()
    cells = "() => jupyterapp.shell.currentWidget.model.cells.length"
    here = page.evaluate(ACTIVE)
    for name in KEYS:
        assert press(toy, name), name
        page.keyboard.press("x")  # cuts the cell where it leaves the toy
        assert (page.evaluate(ACTIVE), page.evaluate(cells)) == (here, 3), name

    count = "() => jupyterapp.shell.currentWidget.content.widgets[1].model.executionCount"
    before = page.evaluate(count)
    control(toy, "slider").press("Shift+Enter")
    page.wait_for_function(f"() => ({count})() > {before}", timeout=20_000)
