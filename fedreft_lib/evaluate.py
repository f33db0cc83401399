"""Which answers are right: by the likelihood of each option, or by what the model writes."""

import re

import torch
from torch import Tensor

from .batches import by_length
from .config import RunConfig
from .interventions import State
from .steering import SteeredModel
from .worlds import Answers, Options


@torch.no_grad()
def loss(model: SteeredModel, state: State | None, data: Answers, batch_size: int) -> float:
    """Mean negative log-likelihood of an answer token (nats), forward passes only."""
    total, tokens = 0.0, 0
    for indices in by_length(data.sequences, batch_size):
        logprobs, _ = model.answer_logprobs(data.batch(model, indices), state)
        total, tokens = total - float(logprobs.sum()), tokens + len(logprobs)
    return total / tokens


def correct(model: SteeredModel, state: State | None, data: Options, config: RunConfig) -> Tensor:
    """For each test question, whether it is answered rightly: bool (questions,)."""
    if config.scoring == "generation":
        return torch.tensor(
            [
                extract_label(text, labels) == labels[gold]
                for text, labels, gold in zip(
                    generated(model, state, data, config.batch_size), data.labels, data.gold, strict=True
                )
            ]
        )
    return chosen(model, state, data, config).eq(torch.tensor(data.gold))


@torch.no_grad()
def chosen(model: SteeredModel, state: State | None, data: Options, config: RunConfig) -> Tensor:
    """The option with the highest log-likelihood, or log-likelihood per character, of each question: (questions,)."""
    found = torch.empty(len(data), dtype=torch.long)
    for indices in by_length(data.sequences, 2 * config.batch_size):
        logprobs, answer = model.answer_logprobs(data.batch(model, indices), state)
        counts = [len(data.sequences[i].answer_lengths) for i in indices]
        scores = torch.zeros(sum(counts), dtype=torch.float64).index_add_(0, answer.cpu(), logprobs.double().cpu())
        if config.scoring == "likelihood_per_character":
            scores = scores / torch.cat([data.characters[i] for i in indices])
        found[indices] = torch.stack([each.argmax() for each in scores.split(counts)])
    return found


def generated(model: SteeredModel, state: State | None, data: Options, batch_size: int) -> list[str]:
    """What the model writes after each question's prompt, at most 32 tokens, greedily (the ReFT paper's setting)."""
    texts: dict[int, str] = {}
    for indices in by_length(data.sequences, 2 * batch_size):
        texts |= dict(zip(indices, model.generate([data.sequences[i] for i in indices], state, 32), strict=True))
    return [texts[i] for i in range(len(data))]


def extract_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The first of the answer words that occurs in a generation, as LLM-Adapters' evaluation reads it."""
    found = re.search("|".join(map(re.escape, labels)), text)
    return found[0] if found else None
