"""A task with a known optimum: real texts, and labels on which clients agree as much as one asks.

A text is answered "no" or "yes". Client k's labels are linear in what the frozen model sees at the text's last token:

    y_k(x) = [e(x) . w_k > its median over all texts],  w_k = c w_0 + s v_k,  c^2 = cos(pi (1 - a)),  c^2 + s^2 = 1

e(x) (12,) are the whitened principal components of that hidden state. w_0 and the v_k are orthonormal, so any two
clients agree on the share a of labels: a = 1 is one task for all (iid), a = 1/2 are unrelated tasks. (For Gaussian e;
`share_agreed` counts.) There are 11 directions beside w_0: of more clients, each eleven are orthonormal among
themselves, and two of different elevens agree on a only on average.

Every client can reach 100 %: its rule is linear in a state that an intervention edits. The best rule for all clients
together is the mean of the w_k, whose accuracy falls with disagreement: see `optimum`.

The texts are the questions of commonsense tasks, without their choices: per task the first 340 of its training set and
the first 260 of its test set that have 12 to 110 characters. Nothing here knows a model: `federation.labelling` reads
the texts with one and labels them.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..seeds import derive
from .commonsense_sources import load_questions
from .items import Exchange, Item, Labelled, Question

COMPONENTS = 12
TRAIN, TEST = 340, 260  # texts of a task
SHORTEST, LONGEST = 12, 110  # characters of a text
ANSWERS = ("no", "yes")


@dataclass(frozen=True)
class Text:
    """A text that has no label yet, since that depends on the client who gets it."""

    task: str
    question: str

    def labelled(self, label: bool) -> Question:
        choices = ANSWERS[::-1] if self.task == "boolq" else ANSWERS  # its prompts say yes, or true, for the first
        return Question(self.task, "", self.question, choices, choices.index(ANSWERS[int(label)]))

    @cached_property
    def uid(self) -> str:
        return self.labelled(False).uid  # the answer does not matter to it


def load(
    task: str, split: str, *, source: str = "packaged", data_dir: str | Path | None = None, seed: int = 0
) -> list[Text]:
    """The texts of one task and split, in the order of the source; arguments as in `load_questions`.

    Local files may have any kind of item: its text, pair or question counts. "dev" is empty, since held-out texts come
    from the training set.
    """
    if split == "dev":
        return []
    if source == "packaged":
        return list(_packaged(task, split))
    return _texts(task, split, load_questions(task, split, source=source, data_dir=data_dir, seed=seed))


@lru_cache  # maps have hundreds of federations
def _packaged(task: str, split: str) -> tuple[Text, ...]:
    return tuple(_texts(task, split, load_questions(task, split)))


def _texts(task: str, split: str, items: list[Item]) -> list[Text]:
    texts = dict.fromkeys(map(_asked, items))
    fitting = [text for text in texts if SHORTEST <= len(text) <= LONGEST]
    return [Text(task, text) for text in fitting[: TRAIN if split == "train" else TEST]]


def _asked(item: Item) -> str:
    match item:
        case Question():
            parts = (item.context, item.question)
        case Exchange():
            parts = (item.question,)
        case Labelled():
            parts = (item.text_a, item.text_b)
    return " ".join(" ".join(parts).split())


def components(hidden: np.ndarray) -> np.ndarray:
    """e: the first 12 principal components (n, 12) of hidden states (n, d), each with variance 1 over the n texts.

    A component's sign is that of its largest loading. Raises ConfigError where there are fewer than 12 (few texts, or a
    narrow model).
    """
    centred = hidden - hidden.mean(0)
    U, S, Vh = np.linalg.svd(centred, full_matrices=False)
    if len(S) < COMPONENTS or not S[COMPONENTS - 1] > 1e-6 * S[0]:  # equal texts: 0 > 0
        raise ConfigError(
            f'benchmark="agreement" needs texts that differ in {COMPONENTS} directions of the hidden state, these '
            f"{len(hidden)} differ in fewer"
        )
    loadings = Vh[:COMPONENTS]
    largest = np.take_along_axis(loadings, np.abs(loadings).argmax(1, keepdims=True), 1)
    return U[:, :COMPONENTS] * np.sqrt(len(hidden)) * np.sign(largest).T


def rules(clients: int, agreement: float, seed: int) -> np.ndarray:
    """w (clients, 12): each client's rule, of length 1."""
    rng = np.random.default_rng(derive(seed, "agreement", "rules"))
    drawn = rng.standard_normal(COMPONENTS)
    shared = drawn / np.linalg.norm(drawn)
    own: list[np.ndarray] = []
    while len(own) < clients:  # an eleven of orthonormal directions, all orthogonal to w_0
        block = np.column_stack([shared, rng.standard_normal((COMPONENTS, COMPONENTS - 1))])
        own.extend(np.linalg.qr(block).Q.T[1:])
    c, s = _parts(agreement)
    return c * shared + s * np.stack(own[:clients])


def labels(e: np.ndarray, w: np.ndarray) -> np.ndarray:
    """y (n, clients): whether a text's score e . w_k is above the median of all texts, so half of them are."""
    scores = e @ w.T
    return scores > np.median(scores, axis=0)


def share_agreed(y: np.ndarray) -> float:
    """The share of texts (n) on which two clients agree, mean over all pairs; y (n, clients)."""
    n, clients = y.shape
    signs = np.where(y, 1.0, -1.0)
    pairs = ((signs.T @ signs) / n)[np.triu_indices(clients, 1)]
    return float((1 + pairs.mean()) / 2)


def optimum(agreement: float, clients: int) -> float:
    """The accuracy, in percent, of the best single rule for all clients, their mean. With its own a client has 100.

    For Gaussian e and orthonormal v_k, so for at most 11 clients: two rules at an angle theta agree on 1 - theta / pi.
    """
    c, s = _parts(agreement)
    return 100 * float(1 - np.arccos(np.sqrt(c**2 + s**2 / clients)) / np.pi)


def shared_accuracy(y: np.ndarray, e: np.ndarray, w: np.ndarray) -> float:
    """`optimum` counted on texts: how often the mean rule gives the client's own label, in percent."""
    shared = labels(e, w.mean(0, keepdims=True))  # (n, 1)
    return 100 * float((shared == y).mean())


def _parts(agreement: float) -> tuple[float, float]:
    """c and s: how much of a rule is shared and how much is the client's own."""
    squared = np.clip(np.cos(np.pi * (1 - agreement)), 0.0, 1.0)
    return float(np.sqrt(squared)), float(np.sqrt(1 - squared))
