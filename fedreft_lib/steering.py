"""A frozen backbone that a state steers: log-probabilities of answers, and generation.

The backbone is shared by all clients; a client is nothing but the state that is passed in with each call.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache

from . import last_block
from .adapters import Adapter
from .attention import LLAMA_LIKE, Packing, packs
from .backbone import Backbone
from .batches import Batch, Sequence, added_to_scores, by_length, collate
from .heads import Head
from .interventions import State
from .owners import Lines, filled
from .states import Spec

AT_A_TIME = 16  # answer tokens whose probabilities over the vocabulary are in memory in float32
BLOCKS_RETURN_TUPLES = tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 54)


class SteeredModel:
    """One backbone, one adapter, a classification head where the task has one; any number of states.

    A batch is steered by one state, or each of its rows by its own: batch.owners then says which, and the tensors of
    `state` are those of K states, (K, ...).

    >>> from fedreft_lib import AtSites, LoReFT, Sites, load_backbone
    >>> backbone = load_backbone("tiny-llama")
    >>> model = SteeredModel(backbone, AtSites(LoReFT, Sites((2,), prefix=3, suffix=3), rank=4, d=64))
    >>> model.spec.size  # two sites of 2 r d + r
    1032
    """

    def __init__(self, backbone: Backbone, adapter: Adapter, head: Head | None = None):
        self.backbone, self.adapter, self.head = backbone, adapter, head
        self.spec = Spec.of({**adapter.shapes, **(head.shapes if head else {})})

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of the state's tensors without those of the head; `head_names` are the others."""
        return tuple(self.adapter.shapes)

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(self.head.shapes) if self.head else ()

    def start(self, init: str, seed: int) -> State:
        """A fresh state, the same for the same seed on every machine."""
        generator = torch.Generator().manual_seed(seed)
        return {**self.adapter.start(init, generator), **(self.head.start(generator) if self.head else {})}

    def batch(
        self,
        sequences: Many[Sequence],
        *,
        side: str = "right",
        hidden: Many[Tensor] | None = None,
        owners: Tensor | None = None,
    ) -> Batch:
        """The sequences as one batch; packed where the model can read that, for generation (side="left") padded."""
        packed = side == "right" and packs(self.backbone.model, max(len(s.ids) for s in sequences))
        pad, device = self.backbone.tokenizer.pad_token_id, self.backbone.device
        return collate(sequences, pad, device, side=side, hidden=hidden, packed=packed, owners=owners)

    def hidden_states(self, batch: Batch, state: State | None, dropout: float = 0.0) -> Tensor:
        """Last hidden states (B, T, d), steered by `state`; by nothing where it is None."""
        with self._blocks(batch) as (layers, inputs), self._steered(layers, batch, state, dropout):
            return batch.as_grid(self.backbone.model.base_model(**inputs, **self._reading(batch)).last_hidden_state)

    def class_logits(self, batch: Batch, state: State, dropout: float = 0.0) -> Tensor:
        """The head's outputs (B, outputs), read off the first token."""
        first, state = self.hidden_states(batch, state, dropout)[:, 0], self._moved(state)
        owners = batch.owners
        if owners is None:  # one state, the first of one
            owners = torch.zeros_like(batch.prompt_lengths)
            state = {name: state[name].unsqueeze(0) for name in self.head_names}
        lines = Lines(owners, len(state["head.D"]))
        return lines.taken_back(self.head.logits(lines.lined_up(first), state, dropout))

    def answer_logprobs(self, batch: Batch, state: State | None, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Log-probability (M,) of every answer token of the batch, and the number (M,) of the answer it belongs to.

        Logits are computed at these tokens only: the vocabulary is the widest product of a small model. So is most of
        the last block, whose other outputs nobody reads.
        """
        row, source, column, answer = batch.targets.unbind(1)
        read, which = (row * batch.ids.shape[1] + source).unique(return_inverse=True)  # options share their first one
        with self._last_block_at(read, batch):
            hidden = self.hidden_states(batch, state, dropout)
        logits = self.backbone.model.get_output_embeddings()(hidden.flatten(0, 1)[filled(read)])[: len(read)]
        # Some at a time, since the allocator gives large tensors back to the system, which is slow to hand them out.
        some = (logits[at] for at in which.split(AT_A_TIME)) if batch.branching else logits.split(AT_A_TIME)
        each = zip(some, batch.ids[row, column].split(AT_A_TIME), strict=True)
        losses = [nn.functional.cross_entropy(part.float(), ids, reduction="none") for part, ids in each]
        return -torch.cat(losses), answer

    @torch.no_grad()
    def generate(
        self,
        prompts: Many[Sequence],
        state: State | None,
        max_new_tokens: int,
        *,
        share: Tensor | None = None,
        owners: Tensor | None = None,
    ) -> list[str]:
        """Greedy continuations, read with a key-value cache, each until the end token; finished rows are dropped.

        Interventions steer the prompt alone; additions in linear modules act on every token. owners (B,): each prompt's
        state, where `state` holds several (K, ...): a token costs about the same for many rows as for a few.
        """
        model, tokenizer = self.backbone.model, self.backbone.tokenizer
        batch = replace(self.batch(prompts, side="left", owners=owners), share=share)
        mask, tokens, cache = batch.mask, batch.ids, DynamicCache()
        produced: list[list[int]] = [[] for _ in prompts]
        running, state = list(range(len(prompts))), state and self._moved(state)
        for step in range(max_new_tokens):
            steered = self._steered(self.backbone.layers, batch, state)
            place = (mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
            with steered if step == 0 or self.adapter.every_token else nullcontext():
                out = model.base_model(
                    input_ids=tokens, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
                )
            chosen = model.get_output_embeddings()(out.last_hidden_state[:, -1]).argmax(-1)  # (B,)
            on = (chosen != tokenizer.eos_token_id).nonzero()[:, 0]  # the rows that go on
            if len(on) < len(running):
                running = [running[row] for row in on.tolist()]
                if not running:
                    break
                chosen, mask = chosen[on], mask[on]
                cache.batch_select_indices(on)
                batch = replace(
                    batch,
                    share=None if batch.share is None else batch.share[on],
                    owners=None if batch.owners is None else batch.owners[on],
                )
            for row, token in zip(running, chosen.tolist(), strict=True):
                produced[row].append(token)
            tokens = chosen.unsqueeze(1)
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in produced]

    @property
    def can_start_in_the_middle(self) -> bool:
        """Whether `hidden_below` saves anything: the state acts above block 0, and the model takes its output."""
        config = self.backbone.model.config
        alike = len(set(getattr(config, "layer_types", None) or [])) < 2  # else block n attends as its number says
        return self.adapter.below > 0 and alike and config.model_type in LLAMA_LIKE

    @torch.no_grad()
    def hidden_below(self, sequences: Many[Sequence], batch_size: int = 16) -> list[Tensor]:
        """For each sequence the output (T_i, d) of the last block that no state reaches (`adapter.below`).

        It depends on the data alone, so it serves every round, client state, method and mixing weight. The batches
        depend on `sequences` alone too, so the same list gives the same bits.
        """
        last = self.adapter.below
        caught: list = []
        handle = self.backbone.layers[last].register_forward_hook(lambda module, args, output: caught.append(output))
        found: dict[int, Tensor] = {}
        try:
            with self._replaced(list(self.backbone.layers[: last + 1])):
                for indices in by_length(sequences, batch_size):
                    batch = self.batch([sequences[i] for i in indices])
                    self.backbone.model.base_model(input_ids=batch.as_read(batch.ids), **self._reading(batch))
                    output = caught.pop()
                    hidden = batch.as_grid(output[0] if isinstance(output, tuple) else output)
                    found |= {i: hidden[row, : len(sequences[i].ids)].clone() for row, i in enumerate(indices)}
        finally:
            handle.remove()
        return [found[i] for i in range(len(sequences))]

    def _reading(self, batch: Batch) -> dict:
        """How the model is to read a batch: what each token sees and where it stands."""
        config = self.backbone.model.config
        if self.backbone.kind == "causal":
            seen, places = batch.attention(self.backbone.dtype), batch.places
            reading = {"attention_mask": seen, "position_ids": batch.as_read(places), "use_cache": False}
            return {**reading, **self._packing(batch, seen, causal=not batch.branching)}
        types = getattr(config, "type_vocab_size", 1) > 1 and batch.segments is not None
        segments = {"token_type_ids": batch.as_read(batch.segments)} if types else {}
        if not batch.packed:  # it numbers positions itself
            return {"attention_mask": batch.mask, **segments}
        places = batch.places
        if config.model_type == "roberta":  # which counts from pad_token_id + 1, and does not count a "<pad>" in a text
            counted = batch.ids != config.pad_token_id
            places = counted.cumsum(1) * counted + config.pad_token_id
        seen = added_to_scores(batch.mask.bool()[:, None, None], self.backbone.dtype)
        reading = {"attention_mask": seen, "position_ids": batch.as_read(places), **segments}
        return {**reading, **self._packing(batch, seen, causal=False)}

    @staticmethod
    def _packing(batch: Batch, seen: Tensor, causal: bool) -> dict:
        if not batch.packed:
            return {}
        lengths = batch.mask.sum(1)[batch.order].tolist()
        owners = None if batch.owners is None else batch.owners[batch.order].tolist()
        return {"packing": Packing.of(batch.order, lengths, seen, causal, owners)}

    @contextmanager
    def _steered(self, layers, batch: Batch, state: State | None, dropout: float = 0.0) -> Iterator[None]:
        state = {n: tensor for n, tensor in self._moved(state or {}).items() if n not in self.head_names}
        if not state:  # nothing, or a head alone
            yield
            return
        with self.adapter.attached(layers, state, batch, dropout):
            yield

    def _moved(self, state: State) -> State:
        return {name: tensor.to(self.backbone.device) for name, tensor in state.items()}

    def _last_block_at(self, tokens: Tensor, batch: Batch) -> AbstractContextManager:
        """`last_block.read_at` tokens (M,), flat places in (B, T), where this model and this adapter bear it."""
        if self.backbone.model.config.model_type not in LLAMA_LIKE or self.adapter.every_token:
            return nullcontext()  # an addition in the last block's modules has to know the row of each token
        if batch.packed:
            return last_block.read_at(self.backbone.layers[-1], batch.numbers[tokens], (1, len(batch.index)))
        return last_block.read_at(self.backbone.layers[-1], tokens, tuple(batch.ids.shape))

    @contextmanager
    def _blocks(self, batch: Batch) -> Iterator[tuple]:
        """(blocks by number, inputs): the whole model on ids, or the part above the cached states on those."""
        if batch.hidden is None:
            yield self.backbone.layers, {"input_ids": batch.as_read(batch.ids)}
            return
        first = self.adapter.below
        stand_in = _PassOn()
        blocks = [stand_in, *self.backbone.layers[first + 1 :]]
        with self._replaced(blocks):
            yield dict(enumerate(blocks, start=first)), {"inputs_embeds": batch.hidden}

    @contextmanager
    def _replaced(self, blocks: list[nn.Module]) -> Iterator[None]:
        base, original = self.backbone.model.base_model, self.backbone.layers
        base.layers = nn.ModuleList(blocks)
        try:
            yield
        finally:
            base.layers = original


class _PassOn(nn.Module):
    """Stands for the block whose output is cached, so that its site has a module to hook on."""

    def forward(self, hidden_states: Tensor, *args, **kwargs):
        return (hidden_states,) if BLOCKS_RETURN_TUPLES else hidden_states
