"""Interactive parts of the notebooks.

`lam_toy` and `flip_book` are only HTML with inline scripts, so they work in JupyterLab and in an exported page without
a kernel or a network. `live_mixing` computes with the real model and needs a kernel.
"""

import html
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from string import Template

import ipywidgets
from IPython.display import HTML, display
from matplotlib.figure import Figure

from ..core.aggregation import all_but_me
from ..core.mixing import mix_with
from ..core.rotation import retract
from ..federation.rounds import federation_of
from ..model import scoring
from ..runs.results import Run
from .figures import image

# The toy federation: four clients near each other and one far away, P = 2 numbers each.
TOY = ((0.9, 0.9), (2.4, 0.7), (1.0, 2.2), (2.9, 3.2), (7.5, 3.4))
HERE = Path(__file__).parent


# The script inserts the figure, so a viewer that drops scripts shows the sentence and no dead controls.
TOY_PAGE = Template("""
<div class="fedreft-toy" data-fedreft="$id"><p>A federation of $n clients in two dimensions, with a slider for λ. It
moves where scripts may run: in a notebook whose cells you have run yourself, or in the report page.</p></div>
<script>
(function () {
$script
document.querySelectorAll('[data-fedreft="$id"]').forEach((root) => {
  mountToy(root, $markup, $points);
  root.addEventListener("keydown", (event) => event.stopPropagation()); // JupyterLab moves between cells with arrows
});
})();
</script>
""")


def lam_toy() -> HTML:
    """The toy federation with a slider for lam. Mouse, finger or arrow keys move the clients.

    It shows what one client receives with FedAvg's mean, the mean of the others and the geometric median of the others,
    and where each client ends for (1 - lam) x_k + lam A_k.
    """
    options = "".join(f'<option value="{k}">{k + 1}</option>' for k in range(len(TOY)))
    markup = Template((HERE / "widgets_toy.html").read_text(encoding="utf-8")).substitute(options=options, n=len(TOY))
    return HTML(
        TOY_PAGE.substitute(
            id=_new_id(),
            n=len(TOY),
            points=json.dumps(TOY),
            markup=json.dumps(markup).replace("</", "<\\/"),  # "</" would end the script
            script=(HERE / "widgets_toy.js").read_text(encoding="utf-8"),
        )  # fmt: skip
    )


FLIP_BOOK = Template("""
<div class="fedreft-flip" data-fedreft="$id">
<label hidden>$label: <input type="range" min="0" max="$last" step="1" value="0" aria-valuetext="$first">
<output>$first</output></label>
<noscript>$label $first. The slider needs scripts; it has also: $others.</noscript>
$frames
</div>
<script>
document.querySelectorAll('[data-fedreft="$id"]').forEach(function (root) {
  const frames = root.querySelectorAll("[data-frame]");
  const slider = root.querySelector("input");
  slider.addEventListener("input", function () {
    frames.forEach(function (frame, i) { frame.hidden = i !== Number(slider.value); });
    const name = frames[slider.value].dataset.frame;
    root.querySelector("output").textContent = name;
    slider.setAttribute("aria-valuetext", name);
  });
  root.querySelector("label").hidden = false;
});
</script>
""")


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
    return HTML(
        FLIP_BOOK.substitute(
            id=_new_id(),
            label=html.escape(label),
            last=len(names) - 1,
            first=names[0],
            others=", ".join(names[1:]),
            frames=shown,
        )  # fmt: skip
    )


def live_mixing(run: Run) -> None:
    """Sliders that mix a finished run's states once more, and show one client's held-out loss. They need a kernel.

    Without a kernel the output is one sentence.
    """
    federation = federation_of(run)
    received = all_but_me(run.states, run.config.aggregation, byzantine=run.config.byzantine)
    names = [client.name for client in federation.clients]

    def held_out_loss(client: str, lam: float) -> str:
        k = names.index(client)
        state = run.spec.named(mix_with(run.states, received.aggregate, lam)[k])
        state |= {name: retract(state[name], run.config.retraction) for name in federation.model.adapter.rotated}
        loss = scoring.loss(federation.model, state, federation.clients[k].held_out, run.config.batch_size)
        return f"{client} with λ {lam:.2f}: held-out loss {loss:.4f}"

    client = ipywidgets.Dropdown(options=names, description="client")
    lam = ipywidgets.FloatSlider(0.0, min=0.0, max=1.0, step=0.05, description="λ", continuous_update=False)
    said = ipywidgets.Label(held_out_loss(names[0], 0.0))
    for control in (client, lam):
        control.observe(lambda _: setattr(said, "value", held_out_loss(client.value, lam.value)), names="value")
    box = ipywidgets.VBox([client, lam, said])
    sentence = "<p>Here is a slider that asks the real model; it needs a running notebook.</p>"
    display({**box._repr_mimebundle_(), "text/html": sentence}, raw=True)


def _new_id() -> str:
    return uuid.uuid4().hex[:12]
