"""What a model writes for prompts of one's own, and for many states in few passes."""

from collections.abc import Sequence

import torch

from ..config import RunConfig
from ..core.state import State
from ..data import FAMILIES, Exchange
from ..model.backbone import Backbone
from ..model.steered import SteeredModel
from ..model.tokens import Tokens, by_length, encode

AT_ONCE = 128  # texts in one pass: each has a state of its own, and a token costs little more for many


def read(backbone: Backbone, prompt: str, config: RunConfig, new_tokens: int) -> Tokens:
    """A prompt, as the clients' own questions are read. One that is too long for the answer, too, loses its beginning.

    Raises FedReFTError where the model cannot read it.
    """
    form = FAMILIES[config.benchmark].prompt or FAMILIES["instruction"].prompt
    text, most = form(Exchange("", prompt, "-"), config.prompt_format), config.max_length
    if backbone.most_tokens is not None:
        most = min(most, backbone.most_tokens - new_tokens)
    return encode(backbone.tokenizer, text, [], max_length=most)


def written(
    model: SteeredModel, states: Sequence[State], prompts: Sequence[Tokens], owners: Sequence[int], new_tokens: int
) -> list[str]:
    """The text for each prompt by the state of its owner, states[owners[i]], of at most new_tokens tokens."""
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    texts: dict[int, str] = {}
    for some in by_length(prompts, AT_ONCE):
        own = torch.tensor([owners[i] for i in some], device=model.backbone.device)
        texts |= dict(
            zip(some, model.generate([prompts[i] for i in some], stacked, new_tokens, owners=own), strict=True)
        )
    return [texts[i] for i in range(len(prompts))]
