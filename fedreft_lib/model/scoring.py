"""The scores of a state: from the likelihood of each choice, from generated text, or from a head's outputs."""

import re
from functools import singledispatch

import torch
from torch import Tensor, nn

from ..config import RunConfig
from ..core.state import State
from ..data.grading.metrics import scores as label_scores
from ..data.grading.numbers import graded
from ..data.grading.rouge import rouge_l
from ..data.grading.styles import STYLES
from ..data.grading.words import glued
from .encoding import AnswerSet, ChoiceSet, LabelSet, TextSet, rows_share
from .steered import SteeredModel
from .tokens import by_length

Share = float | Tensor | None  # the local branch's, for states that have one: see methods.branches.Blend
Score = tuple[str, str, float]  # task, metric, value; accuracies, correlations and ROUGE in percent


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


@singledispatch
def scores(data, model: SteeredModel, state: State | None, config: RunConfig, share: Share = None) -> list[Score]:
    """All scores of one part of a test. For each task exactly one has a metric in `metrics.PRIMARY`."""
    raise TypeError(f"{type(data).__name__} is no part of a test")


@scores.register
def _(data: ChoiceSet, model, state, config, share=None) -> list[Score]:
    right = correct(model, state, data, config, share).double().mean()
    return [(_task(data.tasks), "accuracy", 100 * float(right))]


@scores.register
def _(data: TextSet, model, state, config, share=None) -> list[Score]:
    found = [(_task(data.tasks), "loss", loss(model, state, data, config.batch_size, share))]
    texts = generated(model, state, data, config, share)
    free = [i for i, item in enumerate(data.items) if item.kind == "text"]
    exact = [i for i, item in enumerate(data.items) if item.kind != "text"]
    if exact:
        right = sum(graded(data.items[i], texts[i]) for i in exact)
        found.append((_task([data.tasks[i] for i in exact]), "accuracy", 100 * right / len(exact)))
    if free:
        likeness = sum(rouge_l(texts[i], data.items[i].response) for i in free)
        found.append((_task([data.tasks[i] for i in free]), "rouge_l", likeness / len(free)))
    styled = [i for i in free if data.tasks[i] in STYLES]
    if styled:
        kept = sum(STYLES[data.tasks[i]](texts[i]) for i in styled)
        found.append((_task([data.tasks[i] for i in styled]), "style", 100 * kept / len(styled)))
    return found


@scores.register
def _(data: LabelSet, model, state, config, share=None) -> list[Score]:
    outputs = class_outputs(model, state, data, config.batch_size, share)
    found = []
    for task in dict.fromkeys(data.tasks):
        own = [i for i, each in enumerate(data.tasks) if each == task]
        classes = data.classes[own[0]]
        said = outputs[own, :classes].argmax(1) if classes else outputs[own, 0]
        named = label_scores(task, said.tolist(), [data.labels[i] for i in own], classes)
        found += [(task, metric, value) for metric, value in named.items()]
    return found


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
) -> Tensor:
    """For each test question, whether the answer is correct: bool (questions,)."""
    if config.scoring == "generation":
        texts = generated(model, state, data, config, share)
        answers = zip(texts, data.labels, data.gold, strict=True)
        return torch.tensor([extract_label(text, labels) == labels[gold] for text, labels, gold in answers])
    return chosen(model, state, data, config, share).eq(torch.tensor(data.gold))


@torch.no_grad()
def chosen(model: SteeredModel, state: State | None, data: ChoiceSet, config: RunConfig, share: Share = None) -> Tensor:
    """For each question the option with the highest log-likelihood, or log-likelihood per character: (questions,)."""
    found = torch.empty(len(data), dtype=torch.long)
    for indices in data.in_passes(2 * config.batch_size):
        totals = data.option_scores(model, indices, state, share=share).cpu()  # (B, most options)
        if config.scoring == "likelihood_per_character":
            totals = totals / nn.utils.rnn.pad_sequence([data.characters[i] for i in indices], True, 1)
        found[indices] = totals.argmax(1)
    return found


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
