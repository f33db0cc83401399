"""A frozen backbone that a state steers: log-probabilities of answers, and generation.

All clients share the backbone. Each call passes the state of a client.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
import transformers
from torch import Tensor, nn

from ..core.state import Layout, Spec, State
from ..errors import DataError
from ..memory import make_room
from . import agreement
from .adapters import Adapter
from .backbone import Backbone
from .fast import last_block
from .fast.frozen_block import in_few_passes
from .fast.owners import Lines, filled
from .fast.packed_attention import LLAMA_LIKE, Packing
from .fast.token_losses import AT_A_TIME, TokenLosses
from .generation import Cached, Uncached
from .heads import Head
from .known_ways import tried_once
from .tokens import Batch, Tokens, added_to_scores, by_length, collate
from .ways import Ways, known_to

BLOCKS_RETURN_TUPLES = tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 54)


class SteeredModel:
    """One backbone, one adapter, a classification head where the task has one; any number of states.

    One state steers a batch, or each row has its own: batch.owners then holds its number, and the tensors of `state`
    are those of K states, (K, ...).

    >>> from fedreft_lib import AtSites, LoReFT, Sites, load_backbone
    >>> backbone = load_backbone("tiny-llama")
    >>> model = SteeredModel(backbone, AtSites(LoReFT, Sites((2,), prefix=3, suffix=3), rank=4, d=64))
    >>> model.spec.size  # two sites of 2 r d + r
    1032
    """

    def __init__(self, backbone: Backbone, adapter: Adapter, head: Head | None = None, extras: State | None = None):
        self.backbone, self.adapter, self.head = backbone, adapter, head
        self._ways: Ways | None = None  # None: the fastest correct ways
        self.layout = Layout(adapter, head, extras or {})

    @property
    def spec(self) -> Spec:
        return self.layout.spec

    def start(self, init: str, seed: int) -> State:
        """A new state, see `Layout.start`."""
        return self.layout.start(init, seed)

    def ways(self, longest: int, *, writes: bool = False) -> Ways:
        """The fastest correct ways to read texts of up to `longest` tokens, and to generate where `writes`.

        The first call runs the trials of `agreement`. Raises FedReFTError where no way is correct.
        """
        if self._ways is not None:
            return self._ways
        config = self.backbone.model.config
        key = longest, writes, config._attn_implementation  # a user may set another attention
        known = self.backbone.ways
        if key not in known:
            size = agreement.size_of(longest, config, self.backbone.most_tokens)
            try:
                known[key] = self._found(size, writes)
            except agreement.UnreadableError:  # a limit on length under an unknown name in the configuration
                if size == longest:
                    raise
                known[key] = self._found(longest, writes)
        return known[key]

    def _found(self, size: int, writes: bool) -> Ways:
        tried, attention = self.backbone.tried, self.backbone.model.config._attn_implementation
        if (size, writes, attention) not in tried:
            if known := self._fastest_of_longer(size, writes, attention):
                return known
            try:
                found = tried_once(self.backbone, size, writes, lambda: agreement.found(self, size, writes))
                tried[size, False, attention] = replace(found, cached=True)
            except agreement.UnreadableError as error:
                found = error
            tried[size, writes, attention] = found
        if isinstance(found := tried[size, writes, attention], agreement.UnreadableError):
            raise found
        return found

    def _fastest_of_longer(self, size: int, writes: bool, attention: str) -> Ways | None:
        """The fastest ways of all, where a trial with longer texts has found them right: it had short texts, too."""
        longer = (
            found for (other, *how), found in self.backbone.tried.items() if other > size and how == [writes, attention]
        )
        return next((found for found in longer if found == Ways("packed")), None)

    def read_by(self, ways: Ways) -> "SteeredModel":
        """The same model, read in the given ways, whether they are correct or not."""
        other = SteeredModel(self.backbone, self.adapter, self.head, self.layout.extras)
        other._ways = ways
        return other

    def batch(
        self,
        sequences: Sequence[Tokens],
        *,
        side: str = "right",
        hidden: Sequence[Tensor] | None = None,
        owners: Tensor | None = None,
        share: Tensor | None = None,
    ) -> Batch:
        """The sequences as one batch, in the fastest correct ways; padded for generation (side="left").

        hidden, owners and share have one entry per sequence. Where options are read apart, each has its own row. Raises
        DataError for a sequence without a prompt.
        """
        if any(not s.prompt_length for s in sequences):
            raise DataError("a text without a prompt has nothing that predicts its first token: give it one")
        ways = self.ways(max(s.reach for s in sequences))
        pad, device = self.backbone.tokenizer.pad_token_id, self.backbone.device
        return collate(sequences, pad, device, side=side, hidden=hidden, ways=ways, owners=owners, share=share)

    def hidden_states(self, batch: Batch, state: State | None, dropout: float = 0.0) -> Tensor:
        """Last hidden states (B, T, d), steered by `state`, or unsteered where it is None."""
        if batch.ways.layout == "alone" and len(batch.ids) > 1:
            rows = [self.hidden_states(row, state, dropout)[0] for row in batch.rows_alone()]
            return nn.utils.rnn.pad_sequence(rows, batch_first=True)
        with self.blocks(batch) as (layers, inputs), self.steered(layers, batch, state, dropout):
            return batch.as_grid(self.backbone.model.base_model(**inputs, **self.reading(batch)).last_hidden_state)

    def class_logits(self, batch: Batch, state: State, dropout: float = 0.0) -> Tensor:
        """The head's outputs (B, outputs), from the first token."""
        first, state = self.hidden_states(batch, state, dropout)[:, 0], self.moved(state)
        owners = batch.owners
        if owners is None:  # one state: number 0 of one
            owners = torch.zeros_like(batch.prompt_lengths)
            state = {name: state[name].unsqueeze(0) for name in self.layout.head_names}
        lines = Lines(owners, len(state["head.D"]))
        return lines.taken_back(self.head.logits(lines.lined_up(first), state, dropout))

    def answer_logprobs(self, batch: Batch, state: State | None, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Log-probability (M,) of every answer token of the batch, and the number (M,) of its answer.

        Logits are computed at these tokens only, since the vocabulary is the widest product of a small model. Most of
        the last block is also computed only there, since its other outputs are not read.
        """
        row, source, column, answer = batch.targets.unbind(1)
        read, which = (row * batch.ids.shape[1] + source).unique(return_inverse=True)  # options share their first one
        logits = self._filled_logits(batch, read, state, dropout)
        ids = batch.ids[row, column]
        if not batch.branching:
            return -TokenLosses.apply(logits, ids), answer
        each = zip(which.split(AT_A_TIME), ids.split(AT_A_TIME), strict=True)
        return -torch.cat([TokenLosses.apply(logits[at], own) for at, own in each]), answer

    def logits_at(self, batch: Batch, read: Tensor, state: State | None, dropout: float = 0.0) -> Tensor:
        """Logits (m, V) of the next token after each token of `read` (m,), increasing flat indices into (B, T)."""
        return self._filled_logits(batch, read, state, dropout)[: len(read)]

    def _filled_logits(self, batch: Batch, read: Tensor, state: State | None, dropout: float) -> Tensor:
        """`logits_at`, with rows of no meaning after them. To cut these off would copy the gradient of all."""
        if batch.ways.layout == "alone" and len(batch.ids) > 1:
            T, rows = batch.ids.shape[1], read // batch.ids.shape[1]
            each = [(own, read[rows == i] - i * T) for i, own in enumerate(batch.rows_alone())]
            return torch.cat([self.logits_at(own, places, state, dropout) for own, places in each if len(places)])
        places, shape = read, tuple(batch.ids.shape)
        if batch.packed:
            places, shape = batch.numbers[read], (1, len(batch.index))
        at_these = self._last_block_at(places, shape)
        with at_these, self.blocks(batch) as (layers, inputs), self.steered(layers, batch, state, dropout):
            return self.logits_of({**inputs, **self.reading(batch)}, places, shape, batch.ways.bare)

    def logits_of(self, inputs: dict, places: Tensor, shape: tuple[int, int], bare: bool) -> Tensor:
        """Logits at places (m,), flat indices into the shape (B, T) of a forward pass on `inputs`; (m, V) `filled`."""
        model = self.backbone.model
        read = filled(places)
        if bare:
            hidden = model.base_model(**inputs).last_hidden_state
            return model.get_output_embeddings()(hidden.flatten(0, 1)[read])

        taken = []

        def some(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            """Keeps only the places that are read: the vocabulary is the widest product of a small model."""
            if tuple(args[0].shape[:2]) != shape:
                return None
            taken.append(True)
            return (args[0].flatten(0, 1)[read].unsqueeze(0), *args[1:])

        embeddings = model.get_output_embeddings()
        handle = embeddings and embeddings.register_forward_pre_hook(some)
        try:
            logits = model(**inputs).logits
        finally:
            if handle:
                handle.remove()
        return logits[0] if taken else logits.flatten(0, 1)[read]

    def continuation(
        self,
        prompts: Sequence[Tokens],
        state: State | None,
        longest: int,
        share: Tensor | None = None,
        owners: Tensor | None = None,
    ) -> Cached | Uncached:
        """The continuation of the prompts, token by token, in texts of up to `longest` tokens.

        share, owners: see `Batch`.
        """
        how = Cached if self.ways(longest, writes=True).cached else Uncached
        return how(prompts, self, state and self.moved(state), share, owners)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Tokens],
        state: State | None,
        max_new_tokens: int,
        *,
        share: Tensor | None = None,
        owners: Tensor | None = None,
    ) -> list[str]:
        """Greedy continuations, each until an end token. Only the end tokens of the model's generation config count.

        Finished rows leave the batch. owners (B,): the number of each prompt's state, where `state` holds several
        (K, ...); a token costs about the same for many rows as for a few. See `generation.left_out`.
        """
        longest = max(prompt.reach for prompt in prompts) + max_new_tokens
        text = self.continuation(prompts, state, longest, share, owners)
        ends = torch.tensor(self.backbone.end_ids, dtype=torch.long, device=self.backbone.device)
        produced: list[list[int]] = [[] for _ in prompts]
        running = list(range(len(prompts)))
        for _ in range(max_new_tokens):
            chosen = text.logits().float().argmax(-1)  # (B,); in bfloat16 it would take four times as long
            on = torch.isin(chosen, ends, invert=True).nonzero()[:, 0]  # the rows that continue
            rows = on if len(on) < len(running) else None
            running = [running[row] for row in on.tolist()]
            if not running:
                break
            for row, token in zip(running, chosen[on].tolist(), strict=True):
                produced[row].append(token)
            text.go_on(chosen, rows)
        return [self.backbone.tokenizer.decode(ids, skip_special_tokens=True) for ids in produced]

    @property
    def can_start_in_the_middle(self) -> bool:
        """Whether the model can start from `hidden_below`, and that saves time: the state acts above block 0."""
        config = self.backbone.model.config
        alike = len(set(getattr(config, "layer_types", None) or [])) < 2  # else a block's number sets how it attends
        return self.adapter.below > 0 and alike and config.model_type in LLAMA_LIKE

    @torch.no_grad()
    def hidden_below(self, sequences: Sequence[Tokens], batch_size: int = 16) -> list[Tensor]:
        """For each sequence the output (T_i, d) of the last block that no state reaches (`adapter.below`).

        It depends only on the data, so it serves every round, client state, method and mixing weight. The batches also
        depend only on `sequences`, so the same list gives the same bits.
        """
        last = self.adapter.below
        caught: list = []
        found: dict[int, Tensor] = {}
        handle = self.backbone.layers[last].register_forward_hook(lambda module, args, output: caught.append(output))
        try:
            for indices in by_length(sequences, batch_size):
                batch = self.batch([sequences[i] for i in indices])
                blocks = list(self.backbone.layers[: last + 1])
                with in_few_passes(blocks), self.replaced(blocks):
                    self.backbone.model.base_model(input_ids=batch.as_read(batch.ids), **self.reading(batch))
                output = caught.pop()  # the last one: a trial of the batch's ways may have left others before it
                hidden = batch.as_grid(output[0] if isinstance(output, tuple) else output)
                found |= {i: hidden[row, : len(sequences[i].ids)].clone() for row, i in enumerate(indices)}
        finally:
            handle.remove()
        return [found[i] for i in range(len(sequences))]

    def reading(self, batch: Batch) -> dict:
        """The inputs that say what each token of a batch sees, and its position."""
        config, causal = self.backbone.model.config, self.backbone.kind == "causal"
        segments = {} if batch.segments is None else self.segments(batch.as_read(batch.segments))
        if not (batch.packed or causal and batch.ways.whole):  # the model's own masks and positions
            own = {} if batch.ways.layout == "alone" else {"attention_mask": batch.mask}
            if causal and bool(batch.starts.any()):  # models do not correct positions for padding on the left
                own["position_ids"] = batch.places
            return {**known_to(self.backbone.model, {**own, "use_cache": False}), **segments}
        if causal:
            seen, places = batch.attention(self.backbone.dtype), batch.places
            reading = {"attention_mask": seen, "position_ids": batch.as_read(places), "use_cache": False}
            return {**reading, **self._packing(batch, seen, causal=not batch.branching)}
        places = batch.places
        if config.model_type == "roberta":  # it counts from pad_token_id + 1, and does not count a "<pad>" in a text
            counted = batch.ids != config.pad_token_id
            places = counted.cumsum(1) * counted + config.pad_token_id
        seen = added_to_scores(batch.mask.bool()[:, None, None], self.backbone.dtype)
        reading = {"attention_mask": seen, "position_ids": batch.as_read(places), **segments}
        return {**reading, **self._packing(batch, seen, causal=False)}

    def segments(self, numbers: Tensor) -> dict:
        """The numbers of the two texts of a pair as an input of the model, where it distinguishes the two."""
        tells = self.backbone.segments > 1
        return known_to(self.backbone.model, {"token_type_ids": numbers}) if tells else {}

    @staticmethod
    def _packing(batch: Batch, seen: Tensor, causal: bool) -> dict:
        if not batch.packed:
            return {}
        lengths = batch.mask.sum(1)[batch.order].tolist()
        owners = None if batch.owners is None else batch.owners[batch.order].tolist()
        return {"packing": Packing.of(batch.order, lengths, seen, causal, owners)}

    @contextmanager
    def steered(self, layers, batch: Batch, state: State | None, dropout: float = 0.0) -> Iterator[None]:
        """In this context, `state` steers the next forward pass over the batch, through the blocks `layers`."""
        state = self.read_in_blocks(state or {})
        if not state:  # nothing, or only a head
            yield
            return
        if torch.is_grad_enabled():
            make_room(len(batch.index) if batch.packed else batch.ids.numel())
        with self.adapter.attached(layers, state, batch, dropout):
            yield

    def moved(self, state: State) -> State:
        return {name: tensor.to(self.backbone.device) for name, tensor in state.items()}

    def read_in_blocks(self, state: State) -> State:
        """What of a state steers the blocks, on the model's device: neither the head nor the extras."""
        unread = (*self.layout.head_names, *self.layout.extras)
        return self.moved({name: tensor for name, tensor in state.items() if name not in unread})

    def _last_block_at(self, places: Tensor, shape: tuple[int, int]) -> AbstractContextManager:
        """`last_block.read_at` places (m,), where this model and this adapter allow it."""
        if self.backbone.model.config.model_type not in LLAMA_LIKE or self.adapter.every_token:
            return nullcontext()  # an addition in the last block's modules needs the row of each token
        return last_block.read_at(self.backbone.layers[-1], places, shape)

    @contextmanager
    def blocks(self, batch: Batch) -> Iterator[tuple]:
        """(blocks by number, inputs): the whole model on ids, or the upper part on cached hidden states.

        What has additions inside, a whole block or its attention, is read as it is, so without them it is in all other
        blocks, too: a state that adds nothing then changes no bit.
        """
        blocks = self.backbone.layers if batch.hidden is None else self.stand_in(self.adapter.below)
        within = self.adapter.every_token
        plain = within and not self.adapter.in_attention
        with nullcontext() if plain else in_few_passes(blocks, but_attention=within):
            if batch.hidden is None:
                yield blocks, {"input_ids": batch.as_read(batch.ids)}
                return
            with self.replaced(blocks):
                yield dict(enumerate(blocks, start=self.adapter.below)), {"inputs_embeds": batch.hidden}

    def stand_in(self, last: int) -> list[nn.Module]:
        """The upper blocks, after a module that takes the place of block `last` and passes on what it gets."""
        return [_PassOn(), *self.backbone.layers[last + 1 :]]

    @contextmanager
    def replaced(self, blocks: list[nn.Module]) -> Iterator[None]:
        base, original = self.backbone.model.base_model, self.backbone.layers
        base.layers = nn.ModuleList(blocks)
        try:
            yield
        finally:
            base.layers = original


class _PassOn(nn.Module):
    """Replaces the block whose output is cached, so that its site has a module for its hook."""

    def forward(self, hidden_states: Tensor, *args, **kwargs):
        return (hidden_states,) if BLOCKS_RETURN_TUPLES else hidden_states
