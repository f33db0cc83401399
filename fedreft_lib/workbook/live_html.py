"""What the widget of `live` shows, as HTML: cards of clients, loss curves, and a sentence for where it is not alive."""

from collections.abc import Mapping, Sequence
from html import escape

from . import widgets
from .looks import CYCLE
from .style_book import LOOKS, NONE, ink, style_of

ALIVE = "fedreft-live"  # class of the living widget

STYLE = f"""<style>
.{ALIVE} .widget-html-content {{ line-height: 1.45 }}
.{ALIVE} .of-client {{ width: min(340px, 86vw); margin: 4px 8px 4px 0; padding: 6px 10px; border: 1px solid #8888;
  border-radius: 6px; box-sizing: border-box }}
.{ALIVE} .of-client .top {{ display: flex; justify-content: space-between; gap: 8px; font-weight: bold }}
.{ALIVE} .of-client .chip {{ font-weight: normal; border-radius: 4px; padding: 0 6px }}
.{ALIVE} .of-client .bar {{ display: flex; height: 16px; margin: 4px 0 2px; font-size: 11px; line-height: 16px;
  text-align: center }}
.{ALIVE} .of-client .bar span {{ overflow: hidden }}
.{ALIVE} .of-client .small {{ font-size: 12px; font-variant-numeric: tabular-nums }}
.{ALIVE} .of-client .text {{ white-space: pre-wrap; overflow-wrap: anywhere; min-height: 4.4em; margin: 4px 0;
  padding: 2px 8px; border-left: 5px solid #8888 }}
.{ALIVE} .waits .text {{ opacity: 0.45 }}
.{ALIVE} svg {{ width: min(640px, 92vw); background: #fff; border-radius: 4px }}
</style>"""
ASLEEP = STYLE + widgets.asleep(
    ALIVE, "Here is a widget that asks the real model: you move λ and type a question, and every client answers."
)


def note(sentences: Sequence[str]) -> str:
    return f'<p role="status">{escape(" ".join(sentences))}</p>'


def card(k: int, name: str, weights: Sequence[float], text: str | None, loss: str, *, styled: bool, waits: bool) -> str:
    """Client k's card: its row of the mixing matrix as a bar, its text (None: it writes none), its loss.

    styled: whether to say which style the text has. waits: whether the text is still an earlier one.
    """
    style = style_of(text) if styled and text and not waits else None
    return f"""<div class="of-client{" waits" if waits else ""}">
<div class="top"><span>{escape(name)}</span>{_chip(style) if style else ""}</div>
<div class="bar" role="img" aria-label="weights of the clients' states: {_listed(weights)}">{_bar(weights)}</div>
<div class="small">weights of clients 1 to {len(weights)}: {_listed(weights)}</div>
{"" if text is None else _text(text, style)}
<div class="small">{escape(loss) or "…"}</div></div>"""


def _listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:.2f}" for weight in weights)


def _bar(weights: Sequence[float]) -> str:
    """One part for each client; its number where there is room."""
    parts = []
    for j, weight in enumerate(weights):
        colour = CYCLE[j % len(CYCLE)]
        css = f"width:{100 * weight:.2f}%;background:{colour};color:{ink(colour)}"
        parts.append(f'<span style="{css}">{j + 1 if weight > 0.06 else ""}</span>')
    return "".join(parts)


def _chip(style: str) -> str:
    colour, mark = LOOKS[style]
    words = "no known style" if style == NONE else style
    return f'<span class="chip" style="background:{colour};color:{ink(colour)}">{mark} {words}</span>'


def _text(text: str, style: str | None) -> str:
    edge = f' style="border-color:{LOOKS[style][0]}"' if style else ""
    return f'<div class="text"{edge}>{escape(text)}</div>'


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 52, 110, 34, 36  # of the picture, and of its margins


def curves(
    names: Sequence[str],
    each: Sequence[Mapping[float, float]],
    levels: Sequence[float | None],
    lam: float | None,
    unit: str,
) -> str:
    """Every client's losses by λ, as far as they are known, and dashed, its loss under FedAvg. lam: where we are."""
    values = [loss for known in each for loss in known.values()] + [level for level in levels if level is not None]
    low, high = min(values), max(values)
    low, high = (low, high) if high - low > 1e-3 else (low - 0.01, high + 0.01)

    def x(at: float) -> float:
        return LEFT + at * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - (loss - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn, labels = [_axes(x, y, low, high, unit)], []
    if lam is not None:
        drawn.append(f'<path d="M{x(lam):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#777" stroke-dasharray="2 3"/>')
    for k, level in enumerate(levels):
        if level is not None:
            drawn.append(
                f'<path d="M{x(0):.1f} {y(level):.1f}H{x(1):.1f}" stroke="{CYCLE[k]}" stroke-dasharray="7 4"/>'
            )
            labels.append((x(1) + 24, y(level), f"{k + 1} FedAvg", CYCLE[k]))
    for k, known in enumerate(each):
        points = [(x(at), y(loss)) for at, loss in sorted(known.items())]
        if points:
            joined = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
            drawn.append(f'<polyline points="{joined}" fill="none" stroke="{CYCLE[k]}" stroke-width="2"/>')
            drawn += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{CYCLE[k]}"/>' for px, py in points]
            labels.append((*points[-1], str(k + 1), CYCLE[k]))
    drawn += _labels(labels)
    told = f"Held-out losses of {', '.join(names)} against λ, at the values that you have visited"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}" font-family="sans-serif" '
        f'font-size="13" fill="#1b1f24">{"".join(drawn)}</svg>'
    )


def _axes(x, y, low: float, high: float, unit: str) -> str:
    title = f"Held-out loss ({unit}) of clients 1, 2, …: each λ that you visit adds a point"
    lines = [f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>']
    lines.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{x(1):.1f}" fill="none" stroke="#777"/>')
    for loss in (low, (low + high) / 2, high):
        lines.append(f'<text x="{LEFT - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
    for at in (0, 0.25, 0.5, 0.75, 1):
        lines.append(f'<text x="{x(at):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{at:g}</text>')
    lines.append(f'<text x="{x(0.5):.1f}" y="{HEIGHT - 4}" text-anchor="middle">λ, the share of the others</text>')
    return "".join(lines)


def _labels(labels: Sequence[tuple[float, float, str, str]]) -> list[str]:
    """Texts beside (x, y), moved down where they would stand on one another."""
    drawn, lowest = [], {}
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        y = lowest[round(x)] = max(y, lowest.get(round(x), 0) + 14)
        drawn.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{text}</text>')
    return drawn
