"""The outlier's slider obeys in a page and in JupyterLab, where any factor and prompt can be asked for, too."""

import pytest

from fedreft_lib import RunConfig, assemble
from fedreft_lib.workbook import outlier

from .conftest import READY
from .small_notebook import ACTIVE, run_in_lab

SHOUTING = """
from fedreft_lib import RunConfig, assemble
from fedreft_lib.workbook import outlier
config = RunConfig(backbone="tiny-llama", source="synthetic", benchmark="instruction", tasks=["card"], setup="iid",
                   layers=[2], rank=2, positions="l1", clients=5, train_size=4, held_out_size=2, test_size=2,
                   local_steps=2, batch_size=4, max_new_tokens=4, mixing=0.5, norm_limit=1000)
shouting = outlier.Outlier(assemble(config), config)
"""
PAGE = '<!doctype html><html lang="en"><title>Outlier</title><meta name="viewport" content="width=device-width">'
LIVE = f".{outlier.ALIVE}"


@pytest.fixture(scope="module")
def html():
    names = {"RunConfig": RunConfig, "assemble": assemble}
    exec(SHOUTING, names)
    return f"{PAGE}<main><h1>Outlier</h1>{names['shouting'].slider().data}</main>"


def weight(page, rule="mean of the others"):
    """What is shown under a rule, up to the loss."""
    shown = page.locator(".fedreft-outlier:visible section").filter(has_text=rule).first
    return shown.locator("p").first.inner_text().split("\n")[0]


def test_the_slider_turns_by_key_by_mouse_and_by_finger(page, phone, html):
    page.set_content(html)
    slider = page.get_by_role("slider", name="client 5's update")
    at_1 = weight(page, "median")
    slider.click()
    assert page.locator("output").inner_text() == "×10"
    page.keyboard.press("End")
    assert page.locator("output").inner_text() == "×100"
    assert weight(page) == "weight of client 5: 0.125" and weight(page, "median") != at_1

    phone.set_content(html)
    box = phone.get_by_role("slider").bounding_box()
    phone.touchscreen.tap(box["x"] + box["width"] - 6, box["y"] + box["height"] / 2)
    assert phone.locator("output").inner_text() == "×100"
    assert phone.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("looks", ["phone", "dark"])
def test_no_rule_of_accessibility_is_broken(looks, request, violations, html):
    page = request.getfixturevalue(looks)
    page.set_content(html)
    assert not violations(page)


def test_both_obey_in_jupyterlab_and_say_what_to_run_once_the_kernel_is_gone(new_page, start_lab, tmp_path):
    page = new_page(has_touch=True)
    run_in_lab(page, start_lab, tmp_path, SHOUTING, "shouting.slider()", "shouting.live()")
    baked = page.locator(".fedreft-flip-book").get_by_role("slider")
    baked.click()
    here = page.evaluate(ACTIVE)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator(".fedreft-flip-book output").inner_text() == "×1.6"
    assert page.evaluate(ACTIVE) == here
    box = baked.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 6, box["y"] + box["height"] / 2)
    assert page.locator(".fedreft-flip-book output").inner_text() == "×100"

    live = page.locator(LIVE)
    at_1 = live.locator("section").last.inner_text()
    live.locator(".noUi-handle").click()
    here = page.evaluate(ACTIVE)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"() => document.querySelector('{LIVE} .widget-readout').innerText.startsWith('1.58')")
    page.wait_for_function(
        f"(old) => document.querySelectorAll('{LIVE} section').length === 3 &&"
        f" document.querySelector('{LIVE} section:last-child').innerText !== old",
        arg=at_1,
    )
    assert page.evaluate(ACTIVE) == here
    track = live.locator(".noUi-target").bounding_box()
    page.touchscreen.tap(track["x"] + track["width"] - 1, track["y"] + track["height"] / 2)
    live.get_by_text("weight of client 5: 0.001").wait_for()
    prompt = live.get_by_role("combobox")
    prompt.fill("Who are <you>?")
    prompt.press("Enter")
    live.get_by_text("Who are <you>?").first.wait_for()
    prompt.fill(" ")
    prompt.press("Enter")
    live.get_by_text("empty").wait_for()

    asleep = page.locator(".fedreft-asleep")
    assert not asleep.is_visible()
    page.evaluate("() => void jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    asleep.wait_for(state="visible")
    assert not live.is_visible() and "Run All Cells" in asleep.inner_text()
    page.wait_for_function(READY, timeout=60_000)  # a server does not end while its kernel begins
