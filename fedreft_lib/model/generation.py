"""Generation, token by token: the logits of the next token, for several prompts at once.

    Cached   with a key-value cache, so each token is read once; prompts are padded on the left
    Uncached reads the whole text again for each token, for models whose cache or padding changes values (ways.py)

Interventions steer only the prompt; additions in linear modules act on every token.
"""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from ..core.state import State
from .fast.prepacked import PackedWeights
from .tokens import Tokens
from .ways import Readable, known_to

# Settings of a generation config that transformers' own `generate` would also apply to greedy texts, with defaults.
PROCESSORS = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None, "guidance_scale": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "min_length": 0, "min_new_tokens": None, "num_beams": 1,
}  # fmt: skip


def left_out(model: PreTrainedModel) -> str:
    """The settings of the model's generation config that our plain greedy texts ignore; "" where there are none.

    Its end tokens are used, see `Backbone.end_ids`. Sampling settings do not count, since texts are greedy.
    """
    config = getattr(model, "generation_config", None)
    asked = {name: getattr(config, name, None) for name in PROCESSORS}
    return ", ".join(f"{name}={value}" for name, value in asked.items() if value and value != PROCESSORS[name])


class Continuation:
    """The continuation of prompts that a state steers. share, owners: of the prompts, see `Batch`."""

    def __init__(self, model: Readable, state: State | None, share: Tensor | None, owners: Tensor | None):
        self.model, self.state, self.share, self.owners = model, state, share, owners

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self.share, self.owners = (None if of is None else of[rows] for of in (self.share, self.owners))


class Cached(Continuation):
    def __init__(self, prompts: Sequence[Tokens], *steered):
        super().__init__(*steered)
        self.batch = self.model.batch(prompts, side="left", owners=self.owners, share=self.share)
        self.mask, self.tokens, self.began = self.batch.mask, self.batch.ids, False
        self.cache = empty_cache(self.model.backbone.model.config)
        self.packed = PackedWeights(self.model.backbone.model)

    def logits(self) -> Tensor:
        """(B, V) after the last token of each text."""
        model, places = self.model, (self.mask.cumsum(1) - 1).clamp_min(0)[:, -self.tokens.shape[1] :]
        inputs = {"input_ids": self.tokens, "attention_mask": self.mask, "past_key_values": self.cache}
        inputs |= {"use_cache": True, **known_to(model.backbone.model, {"position_ids": places})}
        steers = not self.began or model.adapter.every_token
        self.began = True
        last = torch.arange(1, len(self.tokens) + 1, device=self.tokens.device) * self.tokens.shape[1] - 1
        steered = model.steered(model.backbone.layers, self.batch, self.state) if steers else nullcontext()
        with self.packed.in_use(), steered:
            return model.logits_of(inputs, last, tuple(self.tokens.shape), self.batch.ways.bare)[: len(last)]

    def go_on(self, chosen: Tensor, rows: Tensor | None = None) -> None:
        """Append the tokens chosen (B,) to the texts. rows: the texts that continue, where not all do."""
        if rows is not None:
            self.keep(rows)
            chosen, self.mask = chosen[rows], self.mask[rows]
            self.cache.batch_select_indices(rows)
            self.batch = replace(self.batch, share=self.share, owners=self.owners)
        self.tokens = chosen.unsqueeze(1)
        self.mask = torch.cat([self.mask, torch.ones_like(self.tokens)], dim=1)


def empty_cache(config: PretrainedConfig) -> DynamicCache:
    """A cache that fits each of the model's blocks, where the library can read that from the configuration."""
    takes_config = "config" in inspect.signature(DynamicCache.__init__).parameters
    return DynamicCache(config=config) if takes_config else DynamicCache()


class Uncached(Continuation):
    """`logits` and `go_on` as in `Cached`."""

    def __init__(self, prompts: Sequence[Tokens], *steered):
        super().__init__(*steered)
        self.texts = list(prompts)

    def logits(self) -> Tensor:
        batch = self.model.batch(self.texts, share=self.share, owners=self.owners)
        ends = torch.tensor([len(text.ids) for text in self.texts], device=batch.ids.device)
        last = torch.arange(len(ends), device=ends.device) * batch.ids.shape[1] + ends - 1
        return self.model.logits_at(batch, last, self.state)

    def go_on(self, chosen: Tensor, rows: Tensor | None = None) -> None:
        if rows is not None:
            self.keep(rows)
            chosen, self.texts = chosen[rows], [self.texts[row] for row in rows.tolist()]
        self.texts = [with_token(text, token) for text, token in zip(self.texts, chosen.tolist(), strict=True)]


def with_token(text: Tokens, token: int) -> Tokens:
    """The text and one more token of its answer."""
    ids = (*text.ids, token)
    return replace(text, ids=ids, answer_lengths=(len(ids) - text.prompt_length,))
