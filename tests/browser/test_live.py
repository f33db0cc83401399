"""λ live in JupyterLab, with a tiny run: it obeys, fills its cards, and says what to run once its kernel is gone."""

import pytest

from .small_notebook import ACTIVE, run_in_lab

RUN = """
from fedreft_lib import RunConfig, run
from fedreft_lib.workbook import live
config = RunConfig(backbone="tiny-llama", source="synthetic", tasks=["piqa", "siqa"], clients=2, rank=2, layers="2-3",
                   train_size=8, held_out_size=4, test_size=4, batch_size=4, rounds=1, method="local",
                   max_new_tokens=4)
done = run(config, progress=False)
"""
LIVE, ASLEEP = ".fedreft-live", ".fedreft-asleep"
FILLED = """(told) => {
    const cards = [...document.querySelectorAll('.fedreft-live .of-client:not(.waits)')];
    return cards.length === 2 && cards.every((card, k) => card.innerText.includes(told[k]));
}"""


def filled(page, lam: float) -> None:
    """Waits until both cards have their answers, with the weights of this λ."""
    own, other = f"{1 - lam:.2f}", f"{lam:.2f}"
    page.wait_for_function(FILLED, arg=[f"{own}, {other}", f"{other}, {own}"], timeout=60_000)


def test_it_lives_as_long_as_its_kernel_and_then_says_what_to_run(new_page, start_lab, tmp_path):
    page = new_page(has_touch=True)
    run_in_lab(page, start_lab, tmp_path, RUN, "live.mixing(done)", "1")
    filled(page, 0.0)  # the first texts come without a move
    assert not page.locator(ASLEEP).is_visible()

    handle = page.locator(f"{LIVE} .noUi-handle")
    handle.click()
    here = page.evaluate(ACTIVE)
    for _ in range(4):  # the moves come faster than the answers
        page.keyboard.press("ArrowRight")
    filled(page, 0.2)
    assert page.evaluate(ACTIVE) == here
    track = page.locator(f"{LIVE} .noUi-target").bounding_box()
    middle = track["y"] + track["height"] / 2
    page.touchscreen.tap(track["x"] + track["width"] / 2, middle)
    filled(page, 0.5)
    handle.hover()
    page.mouse.down()
    page.mouse.move(track["x"] + track["width"] + 40, middle, steps=5)
    page.mouse.up()
    filled(page, 1.0)
    assert page.locator(f"{LIVE} circle").count() >= 6  # λ 0, 0.5 and 1 of both, and what came between

    page.locator(f"{LIVE} .widget-text input").fill("")
    page.keyboard.press("Enter")
    page.get_by_text("Type a question, and every client answers it").wait_for()
    page.locator(f"{LIVE} select").select_option("FedAvg: mean of all")
    page.get_by_text("λ does nothing here").wait_for()
    filled(page, 0.5)

    page.evaluate("() => void jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !jupyterapp.shell.currentWidget.context.model.dirty")
    page.evaluate("() => void jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    asleep = page.locator(ASLEEP)
    asleep.wait_for(state="visible")
    assert not page.locator(LIVE).is_visible() and "Run All Cells" in asleep.inner_text()
    page.reload()
    asleep.wait_for(state="visible", timeout=60_000)
    message = page.locator(".jp-OutputArea", has=asleep).get_by_text("model not found")
    message.wait_for(state="attached", timeout=60_000)
    assert not message.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sentence_alone_is_what_a_page_without_kernel_shows(new_page, violations, scheme):
    from fedreft_lib.workbook.live_html import ASLEEP as html

    page = new_page(color_scheme=scheme)
    page.set_content(f'<html lang="en"><head><title>page</title></head><main><h1>Page</h1>{html}</main></html>')
    assert page.locator(ASLEEP).is_visible() and violations(page) == []
