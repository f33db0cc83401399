"""Interactive parts of the notebooks.

`lam_toy` and `flip_book` are only HTML with inline scripts, so they work in JupyterLab and in an exported page without
a kernel or a network. What computes with the real model and needs a kernel is in `live` and `outlier`.
"""

import html
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from string import Template

from IPython.display import HTML
from matplotlib.figure import Figure

from .figures import image

# The toy federation: four clients near each other and one far away, P = 2 numbers each.
TOY = ((0.9, 0.9), (2.4, 0.7), (1.0, 2.2), (2.9, 3.2), (7.5, 3.4))
HERE = Path(__file__).parent


TOY_SENTENCE = """<p>A federation of {} clients in two dimensions, with a slider for λ. It moves where scripts may run:
in a notebook whose cells you have run yourself, or in the report page.</p>"""
FLIP_BOOK = Template("""
<label hidden>$label: <input type="range" min="0" max="$last" step="1" value="0" aria-valuetext="$first"
style="width: min(20em, 50%); vertical-align: middle">
<output>$first</output></label>
<noscript>$label $first. The slider needs scripts; it has also: $others.</noscript>
$frames
""")


PAGE = Template("""
<div class="fedreft-$name" data-fedreft="$id">$shown</div>
<script>
(function () {
$common
$script
mount("$id", (root) => start(root, ...$values));
})();
</script>
""")


ASLEEP = Template("""<style>
.jp-OutputArea:has(.$alive:not(.jupyter-widgets-disconnected)) .fedreft-asleep { display: none }
.$alive.jupyter-widgets-disconnected { display: none }
.jp-OutputArea:has(.fedreft-asleep) .jupyter-widgets:not(:has(*)) { display: none }
.$alive .widget-html { height: auto }
</style>
<p class="fedreft-asleep">$what It needs a running kernel: open this notebook in JupyterLab (<code>make lab</code>), and
choose Run, Run All Cells.</p>""")


def page(name: str, shown: str, *values: object) -> HTML:
    """`shown`, made alive by widgets_NAME.js, whose `start(root, *values)` gets the element around it.

    `shown` is what a reader sees where scripts do not run, so it has no dead controls.
    """
    return HTML(
        PAGE.substitute(
            name=name.replace("_", "-"),
            id=uuid.uuid4().hex[:12],
            shown=shown,
            common=source("widgets.js"),
            script=source(f"widgets_{name}.js"),
            values=json.dumps(values).replace("<", "\\u003c"),  # "</script>" in a text would end the script
        )  # fmt: skip
    )


def asleep(alive: str, what: str) -> str:
    """HTML beside an ipywidget of the class `alive`: a sentence on what it is and needs, hidden while it is alive.

    What stands in its place when its kernel is gone is hidden: dead controls, or JupyterLab's own "Error displaying
    widget: model not found".
    """
    return ASLEEP.substitute(alive=alive, what=what)


def source(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def lam_toy() -> HTML:
    """The toy federation with a slider for lam. Mouse, finger or arrow keys move the clients.

    It shows what one client receives with FedAvg's mean, the mean of the others and the geometric median of the others,
    and where each client ends for (1 - lam) x_k + lam A_k.
    """
    options = "".join(f'<option value="{k}">{k + 1}</option>' for k in range(len(TOY)))
    markup = Template(source("widgets_toy.html")).substitute(options=options, n=len(TOY))
    return page("toy", TOY_SENTENCE.format(len(TOY)), markup, TOY)


def flip_book(frames: Mapping[str, Figure | HTML | str], label: str) -> HTML:
    """A slider through existing figures: `flip_book({"0.0": fig0, "0.5": fig1}, "λ")`.

    frames: matplotlib figures or HTML, by name, in order. Where scripts do not run, only the first frame is shown.
    Raises ValueError for no frames.
    """
    if not frames:
        raise ValueError("a flip book needs at least one frame, got none")
    names = [html.escape(str(name)) for name in frames]
    bodies = [
        image(frame, f"{label} {name}") if isinstance(frame, Figure) else getattr(frame, "data", frame)
        for name, frame in frames.items()
    ]
    shown = "\n".join(
        f'<div data-frame="{name}"{" hidden" if i else ""}>{body}</div>'
        for i, (name, body) in enumerate(zip(names, bodies, strict=True))
    )
    label, others = html.escape(label), ", ".join(names[1:])
    book = FLIP_BOOK.substitute(label=label, last=len(names) - 1, first=names[0], others=others, frames=shown)
    return page("flip_book", book)
