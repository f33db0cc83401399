"""One client's update, stretched: what an honest client becomes under FedAvg, the mean and the median of the others.

    x + f (x' - x)    what the last client sends in place of x', for a factor f; x' is its state x after local training

The round is otherwise the federation's own (`server.round_of`): all clients train and send, aggregate, mix and retract.
Client 1, which is honest, then says how well it predicts its held-out answers, and what it writes.
"""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from html import escape

import ipywidgets
import pandas as pd
from IPython.display import HTML, display

from ..config import RunConfig
from ..core.state import State
from ..errors import ConfigError, FedReFTError
from ..federation import server
from ..federation.assembly import Federation
from ..federation.client import ClientUpdate
from ..federation.local_clients import LocalClients, start
from ..model import scoring
from ..model.tokens import Tokens
from . import remix, texts, widgets
from .looks import BLUE, ORANGE, SKY

RULES = {"fedavg": ORANGE, "mean": SKY, "geometric_median": BLUE}  # as in every figure
FACTORS = (1, 1.6, 2.5, 4, 6.3, 10, 16, 25, 40, 63, 100)  # five for each power of ten
STYLE = """<style>
.fedreft-outlier { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15em, 100%), 1fr)); gap: 12px;
  max-width: 960px; font-size: 14px; line-height: 1.5; margin-top: 8px }
.fedreft-outlier section { border-top: 6px solid; padding-top: 4px; min-width: 0 }
.fedreft-outlier p { margin: 4px 0 }
.fedreft-outlier .bar { height: 8px; border-radius: 4px; background: #8884 }
.fedreft-outlier .bar div { height: 100%; border-radius: 4px }
.fedreft-outlier blockquote { margin: 2px 0 8px; padding: 4px 8px; border-left: 2px solid #8888; min-height: 4.5em;
  white-space: pre-wrap; overflow-wrap: anywhere }
</style>"""
ALIVE = "fedreft-outlier-live"  # class of the living widget
ASLEEP = widgets.asleep(ALIVE, "Here you choose any factor and type a prompt of your own.")


class Stretched(LocalClients):
    """Clients of which the last one sends `factor` times its update."""

    def __init__(self, federation: Federation, config: RunConfig, factor: float):
        super().__init__(federation, config)
        self.factor = factor

    def train(self, before, missed, t, on_step):
        updates, last = super().train(before, missed, t, on_step), len(self.names) - 1
        return {**updates, last: stretched(updates[last], before[last], self.factor)}


def stretched(one: ClientUpdate, before: State, factor: float) -> ClientUpdate:
    sent = {name: value + (factor - 1) * (value - before[name]) for name, value in one.update.state.items()}
    return replace(one, state={**one.state, **sent}, update=replace(one.update, state=sent))


class Outlier:
    """The first round of a federation whose last client's update is stretched. What was computed is remembered.

    Raises ConfigError below four clients: of client 1's others most must be honest, else no rule can tell who is.
    """

    def __init__(self, federation: Federation, config: RunConfig):
        if config.clients < 4:
            raise ConfigError(f"an outlier among the others needs at least 4 clients, got {config.clients}")
        self.federation, self.config, self.model = federation, config, federation.model
        self.begin = start(federation, config)  # (N, P)
        self.honest = federation.clients[0]
        self.states: dict[tuple[str, float], tuple[State, float]] = {}
        self.losses: dict[tuple[str, float], float] = {}
        self.texts: dict[tuple[str, float, str], str] = {}

    @cached_property
    def questions(self) -> list[str]:
        """Test questions of client 1."""
        return [item.question for part in self.honest.test for item in part.items]

    def after(self, rule: str, factor: float) -> tuple[State, float]:
        """Client 1's state after the round, and the weight in it of what the last client sent."""
        if (rule, factor) not in self.states:
            chosen = {"method": "fedavg"} if rule == "fedavg" else {"method": "fedreft", "aggregation": rule}
            config, layout = self.config.but(**chosen), self.model.layout
            clients = Stretched(self.federation, config, factor)
            rows, report = server.round_of(clients, layout, config, self.begin, [*range(config.clients)], 1, {})
            self.states[rule, factor] = layout.spec.named(rows[0]), float(report.M[0, -1])
        return self.states[rule, factor]

    def loss(self, rule: str, factor: float) -> float:
        """Client 1's held-out loss after the round, in nats a token."""
        if (rule, factor) not in self.losses:
            self.losses[rule, factor] = self.held_out(self.after(rule, factor)[0])
        return self.losses[rule, factor]

    def held_out(self, state: State | None) -> float:
        return scoring.loss(self.model, state, self.honest.held_out, self.config.batch_size)

    def write(self, factors: Iterable[float], prompts: Sequence[str]) -> None:
        """Has client 1 write what is missing in `texts`, in as few passes as possible."""
        wanted = [(rule, factor, prompt) for factor in factors for rule in RULES for prompt in prompts]
        missing = [each for each in wanted if each not in self.texts]
        if not missing:
            return
        keys = list(dict.fromkeys((rule, factor) for rule, factor, _ in missing))
        states, owners = [self.after(*key)[0] for key in keys], [keys.index(each[:2]) for each in missing]
        read = {prompt: self.read(prompt) for prompt in prompts}
        asked = [read[prompt] for *_, prompt in missing]
        found = texts.written(self.model, states, asked, owners, self.config.max_new_tokens)
        self.texts |= dict(zip(missing, found, strict=True))

    def read(self, prompt: str) -> Tokens:
        """A prompt for a text of the usual length. Raises FedReFTError where the model cannot read it."""
        return texts.read(self.model.backbone, prompt, self.config, self.config.max_new_tokens)

    # ---- what a reader sees ------------------------------------------------------------------------------------------

    def table(self, factors: Sequence[float] = FACTORS) -> pd.DataFrame:
        """Client 1's held-out loss: a row for each rule, a column for each factor."""
        found = {rule: [self.loss(rule, factor) for factor in factors] for rule in RULES}
        return pd.DataFrame(found, index=[f"×{factor:g}" for factor in factors]).rename(columns=remix.RULES).T

    def said(self, factors: Sequence[float] = FACTORS) -> list[str]:
        """What the table says, in sentences (HTML) made from its numbers."""
        ends, last = (min(factors), max(factors)), self.config.clients
        untrained, worse, said = self.held_out(None), [], []
        for rule in RULES:
            before, after = (self.loss(rule, factor) for factor in ends)
            weights = " and ".join(f"{self.after(rule, factor)[1]:.3f}" for factor in ends)
            said.append(
                f"<b>{remix.RULES[rule]}</b>: held-out loss {before:.2f} at ×{ends[0]:g} and {after:.2f} at "
                f"×{ends[1]:g}; the weight of client {last}'s state in client 1's is {weights}."
            )
            if not after <= untrained:
                worse.append(remix.RULES[rule])
        which = f"under {' and '.join(worse)}" if worse else "under none of the rules"
        return [*said, f"At ×{ends[1]:g} client 1 is worse off than untrained ({untrained:.2f}) {which}."]

    def cards(self, factor: float, prompts: Sequence[str]) -> str:
        """HTML: for each rule the weight of the outlier, client 1's held-out loss and what it writes."""
        self.write([factor], prompts)
        return f'<div class="fedreft-outlier">{"".join(self._card(rule, factor, prompts) for rule in RULES)}</div>'

    def _card(self, rule: str, factor: float, prompts: Sequence[str]) -> str:
        colour, loss, weight = RULES[rule], self.loss(rule, factor), self.after(rule, factor)[1]
        full = min(100 * loss / self.blind, 100)
        answers = (
            f"<p>{escape(prompt)}</p><blockquote>{_shown(self.texts[rule, factor, prompt])}</blockquote>"
            for prompt in prompts
        )
        return (
            f'<section style="border-color: {colour}"><strong>{remix.RULES[rule]}</strong>'
            f"<p>weight of client {self.config.clients}: {weight:.3f}<br>held-out loss of client 1: {loss:.2f}</p>"
            f'<div class="bar"><div style="width: {full:.1f}%; background: {colour}"></div></div>'
            f"{''.join(answers)}</section>"
        )

    @property
    def blind(self) -> float:
        """The loss of a model that finds all tokens equally likely: a full bar."""
        return math.log(self.model.backbone.vocabulary)

    def slider(self, factors: Sequence[float] = FACTORS, questions: int = 2) -> HTML:
        """A slider through the factors. All texts are written beforehand, so it needs no kernel."""
        asked = self.questions[:questions]
        self.write(factors, asked)
        frames = {f"×{factor:g}": self.cards(factor, asked) for factor in factors}
        return HTML(STYLE + widgets.flip_book(frames, f"client {self.config.clients}'s update").data)

    def live(self) -> None:
        """Any factor and any prompt, computed when asked for. Without a kernel the output is one sentence."""
        wide = ipywidgets.Layout(width="min(100%, 600px)")
        factor = ipywidgets.FloatLogSlider(
            1, min=0, max=2, step=0.1, description="factor", continuous_update=False, layout=wide
        )
        prompt = ipywidgets.Combobox(
            value=self.questions[0], options=self.questions, description="prompt", continuous_update=False, layout=wide
        )
        shown, loop = ipywidgets.HTML(), asyncio.get_running_loop()

        def show() -> None:
            shown.value = "<p>computing …</p>"
            try:
                shown.value = STYLE + self.cards(factor.value, [prompt.value])
            except FedReFTError as error:
                shown.value = f"<p>{escape(str(error))}</p>"

        for control in (factor, prompt):  # a move may come in another thread; the model is used between cells only
            control.observe(lambda _: loop.call_soon_threadsafe(show), names="value")
        show()
        box = ipywidgets.VBox([factor, prompt, shown])
        box.add_class(ALIVE)
        display(box)
        display(HTML(ASLEEP))


def _shown(text: str) -> str:
    """A text as HTML, without its empty lines."""
    return escape("\n".join(filter(str.strip, text.splitlines()))) or "(nothing)"
