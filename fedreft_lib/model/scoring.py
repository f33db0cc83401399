"""The scores of a state: from the likelihood of each choice, from generated text, or from a head's outputs."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..data.grading.calibration import calibrated_nll
from ..data.grading.metrics import CALIBRATED_NLL
from ..data.grading.metrics import scores as label_scores
from ..data.grading.numbers import graded
from ..data.grading.rouge import rouge_l
from ..data.grading.styles import STYLES
from ..data.grading.words import glued
from ..errors import ConfigError
from .encoding import AnswerSet, ChoiceSet, LabelSet, TextSet, rows_share
from .steered import SteeredModel
from .tokens import by_length


@dataclass(frozen=True)
class OutputShares:
    """(items, n): the shares in which the branches' probabilities of an item's options are mixed, not their edits."""

    of: Tensor


# Of the branches, for states that have some, see `encoding.rows_share`.
Share = float | Tensor | OutputShares | None
# Task, metric, value; accuracies, correlations and ROUGE in percent. A list has the value of each item by itself.
Score = tuple[str, str, float | list[float]]


@torch.no_grad()
def loss(
    model: SteeredModel, state: State | None, data: AnswerSet | LabelSet, batch_size: int, share: Share = None
) -> float:
    """Mean loss of an answer token (nats) or of a labelled text; forward passes only."""
    total, count = 0.0, 0
    for indices in data.in_passes(batch_size):
        losses = data.losses(model, indices, state, share=share)
        total, count = total + float(losses.sum()), count + len(losses)
    return total / count


@torch.no_grad()
def item_losses(
    model: SteeredModel,
    state: State | None,
    data: AnswerSet | ChoiceSet | LabelSet,
    batch_size: int,
    share: Share = None,
) -> Tensor:
    """The loss of each item by itself, (items,): of an answer, the sum over its tokens."""
    found = torch.empty(len(data))
    for indices in data.in_passes(batch_size):
        each = data.losses(model, indices, state, share=share).float().cpu().split([data.losses_in(i) for i in indices])
        found[indices] = torch.stack([losses.sum() for losses in each])
    return found


@torch.no_grad()
def losses(
    model: SteeredModel, states: Sequence[State], data: AnswerSet | ChoiceSet | LabelSet, batch_size: int
) -> list[float]:
    """`loss` of each of several states; in common passes where texts are read at their last tokens."""
    if not isinstance(data, ChoiceSet) or data.last is None:
        return [loss(model, state, data, batch_size) for state in states]
    total = torch.zeros(len(states), dtype=torch.float64)
    for _, found in _in_common_passes(model, states, data, batch_size, data.losses):
        total += found.sum(1, dtype=torch.float64)
    return (total / len(data)).tolist()


@torch.no_grad()
def calibrated_losses(
    model: SteeredModel, states: Sequence[State], data: ChoiceSet | LabelSet, batch_size: int
) -> list[float]:
    """The mean calibrated NLL of each of several states, in nats; NaN for scores that are not finite.

    Raises ConfigError for a regression, which has none.
    """
    if isinstance(data, LabelSet):
        if not all(data.classes):
            raise ConfigError(
                f'adaptive_by="calibrated" needs classes, and {data.tasks[data.classes.index(0)]} has none'
            )
        of_states = [list(class_outputs(model, state, data, batch_size)) for state in states]
        gold = data.labels
        of_states = [[row[:n] for row, n in zip(rows, data.classes, strict=True)] for rows in of_states]
    else:
        gold, of_states = data.gold, [[torch.empty(0)] * len(data) for _ in states]
        for indices, found in _in_common_passes(model, states, data, batch_size, data.option_scores):
            for rows, each in zip(of_states, found.double(), strict=True):
                for i, row in zip(indices, each, strict=True):
                    rows[i] = row[: len(data.sequences[i].answer_lengths)]
    values = [calibrated_nll([row.numpy() for row in rows], gold) for rows in of_states]
    return [math.nan if each is None else float(each.mean()) for each in values]


def _in_common_passes(
    model: SteeredModel, states: Sequence[State], data: ChoiceSet, batch_size: int, ask: Callable[..., Tensor]
) -> Iterator[tuple[list[int], Tensor]]:
    """Some items' indices and what `ask` finds of them, (states, items, ...).

    All states share a pass where texts are read at their last tokens.
    """
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    for indices in data.in_passes(batch_size):
        if data.last is None:
            yield indices, torch.stack([ask(model, indices, state) for state in states]).cpu()
            continue
        owners = torch.arange(len(states), device=model.backbone.device).repeat_interleave(len(indices))
        found = ask(model, indices * len(states), stacked, owners=owners)
        yield indices, found.view(len(states), len(indices), *found.shape[1:]).cpu()


@singledispatch
def scores(data, model: SteeredModel, state: State | None, config: RunConfig, share: Share = None) -> list[Score]:
    """All scores of one part of a test. For each task exactly one number has a metric in `metrics.PRIMARY`.

    The lists have one value for each of the task's items that the metric grades, in the order of the test.
    """
    raise TypeError(f"{type(data).__name__} is no part of a test")


@scores.register
def _(data: ChoiceSet, model, state, config, share=None) -> list[Score]:
    task = _task(data.tasks)
    right, options = correct(model, state, data, config, share)
    found: list[Score] = [(task, "accuracy", 100 * float(right.double().mean()))]
    return [*found, (task, "accuracy", (100.0 * right).tolist()), *_calibrated(task, options, data.gold)]


@scores.register
def _(data: TextSet, model, state, config, share=None) -> list[Score]:
    found = [(_task(data.tasks), "loss", loss(model, state, data, config.batch_size, share))]
    texts = generated(model, state, data, config, share)
    free = [i for i, item in enumerate(data.items) if item.kind == "text"]
    exact = [i for i, item in enumerate(data.items) if item.kind != "text"]
    if exact:
        right = [100.0 * graded(data.items[i], texts[i]) for i in exact]
        found += _mean_and_items(_task([data.tasks[i] for i in exact]), "accuracy", right)
    if free:
        likeness = [rouge_l(texts[i], data.items[i].response) for i in free]
        found += _mean_and_items(_task([data.tasks[i] for i in free]), "rouge_l", likeness)
    styled = [i for i in free if data.tasks[i] in STYLES]
    if styled:
        kept = [100.0 * STYLES[data.tasks[i]](texts[i]) for i in styled]
        found += _mean_and_items(_task([data.tasks[i] for i in styled]), "style", kept)
    return found


@scores.register
def _(data: LabelSet, model, state, config, share=None) -> list[Score]:
    outputs = class_outputs(model, state, data, config.batch_size, share)
    found = []
    for task in dict.fromkeys(data.tasks):
        own = [i for i, each in enumerate(data.tasks) if each == task]
        classes = data.classes[own[0]]
        labels = [data.labels[i] for i in own]
        said = (outputs[own, :classes].argmax(1) if classes else outputs[own, 0]).tolist()
        found += [(task, metric, value) for metric, value in label_scores(task, said, labels, classes).items()]
        if classes:  # which are right is of use for a task without the metric accuracy (CoLA), too
            found.append((task, "accuracy", [100.0 * (a == b) for a, b in zip(said, labels, strict=True)]))
            found += _calibrated(task, outputs[own, :classes], labels)
    return found


def _mean_and_items(task: str, metric: str, values: list[float]) -> list[Score]:
    return [(task, metric, sum(values) / len(values)), (task, metric, values)]


def _calibrated(task: str, options: Sequence[Tensor], labels: Sequence[int]) -> list[Score]:
    """The calibrated NLL, from the scores of each item's options; [] where it has none."""
    values = calibrated_nll([each.numpy() for each in options], labels)
    return [] if values is None else _mean_and_items(task, CALIBRATED_NLL, values.tolist())


def _task(tasks: list[str]) -> str:
    return tasks[0] if len(set(tasks)) == 1 else "mixed"


@torch.no_grad()
def class_outputs(model: SteeredModel, state: State, data: LabelSet, batch_size: int, share: Share = None) -> Tensor:
    """The head's outputs (items, outputs)."""
    outputs = torch.empty(len(data), model.head.outputs)
    for indices in by_length(data.sequences, 4 * batch_size):
        outputs[indices] = model.class_logits(data.batch(model, indices, share), state).float().cpu()
    return outputs


def correct(
    model: SteeredModel, state: State | None, data: ChoiceSet, config: RunConfig, share: Share = None
) -> tuple[Tensor, list[Tensor]]:
    """For each test question, whether the answer is correct, bool (questions,); and `option_scores` where they decide.

    A generated answer is read from its text, and there are no scores: [].
    """
    if config.scoring == "generation":
        texts = generated(model, state, data, config, share)
        answers = zip(texts, data.labels, data.gold, strict=True)
        return torch.tensor([extract_label(text, labels) == labels[gold] for text, labels, gold in answers]), []
    options = option_scores(model, state, data, config, share)
    return torch.tensor([int(each.argmax()) == gold for each, gold in zip(options, data.gold, strict=True)]), options


@torch.no_grad()
def option_scores(
    model: SteeredModel, state: State | None, data: ChoiceSet, config: RunConfig, share: Share = None
) -> list[Tensor]:
    """For each question the log-likelihood, or log-likelihood per character, of its options: (options,) float64.

    Log-likelihoods are known up to a number for each question where it is read at its last token. Where outputs are
    mixed, they are logarithms of probabilities that sum to 1 over a question's options.
    """
    if isinstance(share, OutputShares):
        return _mixed(model, state, data, config, share.of)
    found: dict[int, Tensor] = {}
    for indices in data.in_passes(2 * config.batch_size):
        totals = data.option_scores(model, indices, state, share=share).double().cpu()  # (B, most options)
        for i, row in zip(indices, totals, strict=True):
            own = row[: len(data.sequences[i].answer_lengths)]
            found[i] = own / data.characters[i] if config.scoring == "likelihood_per_character" else own
    return [found[i] for i in range(len(data))]


def _mixed(model: SteeredModel, state: State, data: ChoiceSet, config: RunConfig, share: Tensor) -> list[Tensor]:
    """log sum_m share_m p_m for the options of each question, where p_m is the softmax of branch m's scores."""
    branches = torch.eye(share.shape[1])[:, None].expand(-1, len(data), -1)  # (n, items, n): one branch for all items
    each = [option_scores(model, state, data, config, alone) for alone in branches]
    logs = [torch.stack(scores).log_softmax(-1) for scores in zip(*each, strict=True)]  # (n, options) of each question
    return [(own + p.double().log()[:, None]).logsumexp(0) for own, p in zip(logs, share, strict=True)]


def generated(
    model: SteeredModel, state: State | None, data: ChoiceSet | TextSet, config: RunConfig, share: Share = None
) -> list[str]:
    """The model's greedy continuation of each item's prompt, at most `max_new_tokens` tokens."""
    prompts = data.prompts
    texts: dict[int, str] = {}
    for indices in by_length(prompts, 2 * config.batch_size):
        own = rows_share(share, indices, model.backbone.device)
        written = model.generate([prompts[i] for i in indices], state, config.max_new_tokens, share=own)
        texts |= dict(zip(indices, written, strict=True))
    return [texts[i] for i in range(len(data))]


def extract_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The first answer word in a generated text; None where there is none. As in LLM-Adapters, but only whole words.

    LLM-Adapters takes the first match of answer1|answer2|..., which finds answer1 in "answer10" and true in "untrue".
    Here a label must not be part of a longer number or word. A digit must not touch a digit at its edge. A sign or a
    fraction must not touch a label that begins like a number ("5" is not in "-5" or "2.5"). A letter must not touch a
    label without digits, except a letter of another label ("truetrue"). If several labels begin alike, the longest
    whole one counts. All else is as there: upper and lower case differ, and "isanswer2The" has answer2.
    """
    longest_first = sorted(filter(None, labels), key=len, reverse=True)
    for start in range(len(text)):
        for label in longest_first:
            if text.startswith(label, start) and _is_whole(text, start, start + len(label), longest_first):
                return label
    return None


def _is_whole(text: str, start: int, end: int, labels: list[str]) -> bool:
    label = text[start:end]
    if re.match(r"[-+]?\d", label):
        # 1,000 and 2.5 are one number each; a hyphen after a word or a number is not a sign
        longer = re.search(r"(?:\d[.,]|(?:^|[^\w.)])[-+\u2212])$", text[:start]) or re.match(r"[.,]\d", text[end:])
        if longer:
            return False
    if re.search(r"\d", label):
        return "digit" not in (glued(text, start), glued(text, end))
    words = [each for each in labels if not re.search(r"\d", each)]
    while glued(text, end) and (more := next((each for each in words if text.startswith(each, end)), None)):
        end += len(more)
    return not glued(text, start) and not glued(text, end)
