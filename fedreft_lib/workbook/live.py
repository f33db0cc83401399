"""λ live, on the real model: every client's text and held-out loss at a λ, for a prompt of your own. Needs a kernel.

    mixing(run)      the widget, for the last states of a run
    page(outputs)    the same for the newest run that is there

A move starts a task that goes from client to client and gives way between them, so that a cell or the next move waits
for one client at most. The next move ends the task of the one before.
"""

import asyncio
import json
from html import escape
from pathlib import Path

import ipywidgets as w
from IPython.display import HTML, display

from ..config import RunConfig
from ..data import STYLES
from ..errors import ConfigError, FedReFTError
from ..methods import METHODS
from ..runs.results import Run, load_run
from . import live_html
from .remix import RULES, Remix, refusal

SHOWN = 8  # clients with a text each; there are as many colours
PAUSE = 0.02  # seconds between clients, in which the kernel takes what has come in


def mixing(run: Run) -> None:
    """Shows the widget for a run, or says in a sentence why it cannot be."""
    try:
        live = Live(Remix(run))
    except FedReFTError as error:
        display(HTML(f"<p>{escape(str(error))}</p>"))
        return
    display(live.box)
    display(HTML(live_html.ASLEEP))  # shown wherever the widget is not alive


def page(outputs: str | Path) -> None:
    """The widget for the `newest` run, and which one that is."""
    try:
        run = newest(outputs)
    except FedReFTError as error:
        display(HTML(f"<p>{escape(str(error))}</p>"))
        return
    config = run.config
    what = f"{config.benchmark}, {config.clients} clients, {config.method}, {config.backbone}"
    display(HTML(f"<p>The run <code>{escape(str(run.folder))}</code> ({escape(what)}).</p>"))
    mixing(run)


def newest(outputs: str | Path) -> Run:
    """The newest finished run in outputs/PROFILE/runs that can be mixed. Those that write free texts come first.

    Raises FedReFTError where there is none.
    """
    found = []
    for path in Path(outputs).glob("*/runs/*/manifest.json"):
        try:
            manifest, config = (json.loads((path.parent / n).read_text("utf-8")) for n in (path.name, "config.json"))
            config = RunConfig(**config)
        except (OSError, ValueError, TypeError, ConfigError):
            continue  # of another version, or damaged
        if manifest.get("round") == config.rounds and not refusal(config):
            telling = config.benchmark == "instruction" and not METHODS[config.method].one_for_all
            found.append((telling, path.stat().st_mtime, path.parent))
    if not found:
        raise FedReFTError(
            f"There is no finished run below {outputs} yet: run the notebook 04_instruction or `make reproduce`, then "
            "this cell again."
        )
    return load_run(max(found)[-1])


class Live:
    """The controls, the clients' cards and the curves (`box`), and the task that fills them."""

    def __init__(self, remix: Remix):
        self.remix, self.task = remix, None
        self.loop = asyncio.get_running_loop()  # the one that runs cells
        own = remix.config.aggregation
        wide, label = w.Layout(width="min(100%, 460px)"), {"description_width": "80px"}
        self.rule = w.Dropdown(
            options=[(words, rule) for rule, words in RULES.items()], description="aggregate",
            value=own if own in RULES else "geometric_median", layout=wide, style=label,
        )  # fmt: skip
        self.lam = w.FloatSlider(0.0, min=0.0, max=1.0, step=0.05, description="λ", continuous_update=False,
                                 layout=wide, style=label)  # fmt: skip
        self.prompt = w.Text(
            self._question() if remix.writes else "", description="prompt", continuous_update=False,
            placeholder="Type a question, then Enter", layout=w.Layout(width="min(100%, 720px)"), style=label,
        )  # fmt: skip
        self.note, self.curves = w.HTML(), w.HTML()
        self.cards = [w.HTML() for _ in remix.clients[:SHOWN]]
        self.texts = [""] * len(self.cards)  # the last ones, until the next ones are there
        controls = [self.rule, self.lam, *([self.prompt] if remix.writes else [])]
        for control in controls:
            control.observe(self.move, names="value")
        cards = w.Box(self.cards, layout=w.Layout(flex_flow="row wrap"))
        self.box = w.VBox([*controls, self.note, cards, self.curves])
        self.box.add_class(live_html.ALIVE)
        # A link works in the browser. So this number changes once a browser shows the widget, and the first texts are
        # made then: a batch that nobody watches makes none.
        self.seen = w.IntText(0)
        self.seen.observe(self.move, names="value")
        self.link = w.jsdlink((w.IntText(1), "value"), (self.seen, "value"))

    def _question(self) -> str:
        return next((item.question for item in self.remix.federation.questions[0].test), "")

    def move(self, _change: object = None) -> None:
        """Ends what was being made, and begins to make what the controls ask for now.

        JupyterLab has a thread of its own for moves. A model serves one thread at a time, so the work goes to the loop
        that runs cells: it is done between cells, never beside one.
        """
        self.loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self.task:
            self.task.cancel()
        self.task = self.loop.create_task(self._follow())

    async def _follow(self) -> None:
        rule, lam, prompt = self.rule.value, self.lam.value, self.prompt.value.strip()
        self.lam.disabled = rule == "fedavg"
        for k in range(len(self.cards)):
            self._draw(k, rule, lam, waits=True)
        try:
            self.note.value = live_html.note(self._remarks(rule, prompt))
            for k in range(len(self.cards)):
                await asyncio.sleep(PAUSE)
                self.remix.loss(rule, lam, k)
                self.texts[k] = self.remix.text(rule, lam, k, prompt) if prompt else ""
                self._draw(k, rule, lam)
                self._draw_curves(rule, lam)
        except Exception as error:  # nobody waits for this task, so it says itself what is wrong
            self.note.value = live_html.note([str(error) or type(error).__name__])

    def _draw(self, k: int, rule: str, lam: float, waits: bool = False) -> None:
        loss = "" if waits else f"held-out loss {self.remix.loss(rule, lam, k):.3f} {self.remix.unit}"
        name, weights = self.remix.clients[k].name, self.remix.weights(rule, lam)[k].tolist()
        styled = bool({item.task for item in self.remix.federation.questions[k].test} & set(STYLES))
        text = self.texts[k] if self.remix.writes else None
        self.cards[k].value = live_html.card(k, name, weights, text, loss, styled=styled, waits=waits)

    def _draw_curves(self, rule: str, lam: float) -> None:
        names = [client.name for client in self.remix.clients[:SHOWN]]
        each = [self.remix.losses.get((rule, k), {}) for k in range(len(names))] if rule != "fedavg" else []
        level = [self.remix.losses.get(("fedavg", k), {}).get(1.0) for k in range(len(names))]
        self.curves.value = live_html.curves(names, each, level, None if rule == "fedavg" else lam, self.remix.unit)

    def _remarks(self, rule: str, prompt: str) -> list[str]:
        """What the reader should know about what is shown, in sentences. Raises FedReFTError for a bad prompt."""
        remix, found = self.remix, []
        if rule == "fedavg":
            found.append(
                "FedAvg gives every client the mean of all states in place of its own, so λ does nothing here."
            )
        if remix.all_equal:
            found.append(
                "All clients of this run have sent the same (as they do after FedAvg): mixing changes nothing."
            )
        if not remix.writes:
            found.append("This model gives labels and writes no texts, so you see its losses.")
        elif not prompt:
            found.append("Type a question, and every client answers it; the losses need none.")
        elif lost := remix.read(prompt).cut[0]:
            kept = len(remix.read(prompt).ids)
            found.append(f"Your prompt is too long by {lost} tokens: the model reads its last {kept}.")
        if (n := len(remix.clients)) > SHOWN:
            found.append(f"You see the first {SHOWN} of {n} clients; all are mixed.")
        return found
