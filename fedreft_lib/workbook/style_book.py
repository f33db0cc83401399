"""The style flip book: what every client writes as λ goes from its own state to the others', by recognised style.

A page has one λ. Its texts are the model's, made beforehand, so the book turns without a kernel. How a style is
recognised: data.grading.styles.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
from IPython.display import HTML
from matplotlib.colors import to_rgb

from ..config import RunConfig
from ..core.state import State
from ..data import STYLES
from ..federation.assembly import Federation
from . import texts, widgets
from .looks import CYCLE, GREY

NONE = "none"  # of a text in no known style
LOOKS = {style: (colour, mark) for style, colour, mark in zip(STYLES, CYCLE, "■▲●◆", strict=False)}
LOOKS[NONE] = (GREY, "–")
SENTENCE = """<p>A flip book: what {} clients write while λ grows in {} steps from 0 to 1. It turns where scripts may
run: in a notebook whose cells you have run yourself, or in the report page.</p>"""


def style_of(text: str) -> str:
    """The style of a text, or "none"."""
    return next((style for style, is_so in STYLES.items() if is_so(text)), NONE)


def written(
    federation: Federation, states: Mapping[float, Sequence[State]], config: RunConfig, questions: int
) -> pd.DataFrame:
    """What every client answers to its first test questions with each of its states, by λ: one row for each text.

    All clients answer equally many, `questions` or as many as each has. Columns: lam, client, task, question,
    reference, written, spoken.
    """
    asked = range(min(questions, *(len(client.test[0]) for client in federation.clients)))
    tests = [client.test[0].subset(asked) for client in federation.clients]
    every = [state for of_lam in states.values() for state in of_lam]
    rows, prompts, owners = [], [], []
    for n, lam in enumerate(states):
        for k, (client, test) in enumerate(zip(federation.clients, tests, strict=True)):
            rows += [(lam, client.name, item.task, item.question, item.response) for item in test.items]
            prompts += test.prompts
            owners += [n * len(tests) + k] * len(test)
    found = texts.written(federation.model, every, prompts, owners, config.max_new_tokens)
    table = pd.DataFrame(rows, columns=["lam", "client", "task", "question", "reference"])
    return table.assign(written=found, spoken=[style_of(text) for text in found])


def flip_book(table: pd.DataFrame) -> HTML:
    """The book of the texts that `written` returned."""
    unique = list(dict.fromkeys(table["written"]))
    place = {text: i for i, text in enumerate(unique)}
    clients = [
        {
            "name": name,
            "own": own["task"].iloc[0],
            "asked": [
                {"question": question, "texts": [place[text] for text in rows["written"]]}
                for question, rows in own.sort_values("lam", kind="stable").groupby("question", sort=False)
            ],
        }
        for name, own in table.groupby("client", sort=False)
    ]
    lams = sorted(set(table["lam"]))
    looks = {style: {"colour": colour, "ink": ink(colour), "mark": mark} for style, (colour, mark) in LOOKS.items()}
    book = {
        "lams": [f"{lam:g}" for lam in lams],
        "clients": clients,
        "texts": [[text, style_of(text)] for text in unique],
        "looks": looks,
    }
    sentence = SENTENCE.format(len(clients), len(lams))
    return widgets.page("style_book", sentence, widgets.source("widgets_style_book.html"), book)


def ink(colour: str) -> str:
    """Black or white: what can be read on a colour."""
    r, g, b = to_rgb(colour)
    return "#000000" if 0.299 * r + 0.587 * g + 0.114 * b > 0.45 else "#ffffff"
