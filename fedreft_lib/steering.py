"""A frozen backbone that a state steers: log-probabilities of answers, and generation.

The backbone is shared by all clients; a client is nothing but the state that is passed in with each call.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .batches import Batch, Sequence, by_length, collate
from .interventions import Intervention, State
from .sites import Sites, intervene
from .states import Spec

# Models whose blocks take what comes before them as plain `inputs_embeds`, so that they can start in the middle.
STARTS_ANYWHERE = ("llama", "mistral", "qwen2", "qwen3")


class SteeredModel:
    """One backbone, one kind of intervention, one set of sites; any number of states."""

    def __init__(self, backbone: Backbone, intervention: Intervention, sites: Sites, rank: int):
        self.backbone, self.intervention, self.sites, self.rank = backbone, intervention, sites, rank
        self.spec = Spec.of(intervention.shapes(len(sites), rank, backbone.hidden_size))
        self.pad_id = backbone.tokenizer.pad_token_id
        self._blocks_return_tuples = False  # as transformers up to 4.53 does; seen in `hidden_below`

    def start(self, init: str, seed: int) -> State:
        """A fresh state, the same for the same seed on every machine."""
        generator = torch.Generator().manual_seed(seed)
        return self.intervention.init(
            len(self.sites), self.rank, self.backbone.hidden_size, start=init, generator=generator
        )

    def batch(self, sequences: Many[Sequence], *, side: str = "right", hidden: Many[Tensor] | None = None) -> Batch:
        return collate(sequences, self.pad_id, self.backbone.device, side=side, hidden=hidden)

    def hidden_states(self, batch: Batch, state: State | None) -> Tensor:
        """Last hidden states (B, T, d), steered by `state`; by nothing where it is None."""
        with self._blocks(batch) as (layers, inputs), self._steered(layers, batch, state):
            return self.backbone.model.base_model(**inputs, **self._reading(batch)).last_hidden_state

    def answer_logprobs(self, batch: Batch, state: State | None) -> tuple[Tensor, Tensor]:
        """Log-probability (M,) of every answer token of the batch, and the number (M,) of the answer it belongs to.

        Logits are computed at these tokens only: the vocabulary is the widest product of a small model.
        """
        hidden = self.hidden_states(batch, state)
        row, source, column, answer = batch.targets.unbind(1)
        logits = self.backbone.model.get_output_embeddings()(hidden[row, source])  # (M, V)
        return -nn.functional.cross_entropy(logits.float(), batch.ids[row, column], reduction="none"), answer

    @torch.no_grad()
    def generate(self, prompts: Many[Sequence], state: State | None, max_new_tokens: int) -> list[str]:
        """Greedy continuations, read with a key-value cache; only prompt positions are steered."""
        model, tokenizer = self.backbone.model, self.backbone.tokenizer
        batch = self.batch(prompts, side="left")
        mask, tokens, cache = batch.mask, batch.ids, None
        running = torch.ones(len(prompts), dtype=torch.bool, device=tokens.device)
        produced: list[list[int]] = [[] for _ in prompts]
        with self._steered(self.backbone.layers, batch, state):  # its hooks act on the first pass alone
            for _ in range(max_new_tokens):
                place = (mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
                out = model.base_model(
                    input_ids=tokens, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
                )
                cache = out.past_key_values
                chosen = model.get_output_embeddings()(out.last_hidden_state[:, -1]).argmax(-1)  # (B,)
                running = running & (chosen != tokenizer.eos_token_id)
                if not bool(running.any()):
                    break
                for row in running.nonzero()[:, 0].tolist():
                    produced[row].append(int(chosen[row]))
                tokens = chosen.unsqueeze(1)
                mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in produced]

    @property
    def can_start_in_the_middle(self) -> bool:
        """Whether `hidden_below` saves anything: the first site is above block 0, and the model takes its output."""
        config = self.backbone.model.config
        alike = len(set(getattr(config, "layer_types", None) or [])) < 2  # else block n attends as its number says
        return self.sites.layers[0] > 0 and alike and config.model_type in STARTS_ANYWHERE

    @torch.no_grad()
    def hidden_below(self, sequences: Many[Sequence], batch_size: int = 16) -> list[Tensor]:
        """For each sequence the output (T_i, d) of the first steered block, before it is steered.

        It depends on the data alone, so it serves every round, client state, method and mixing weight. The batches
        depend on `sequences` alone too, so the same list gives the same bits.
        """
        last = self.sites.layers[0]
        caught: list = []
        handle = self.backbone.layers[last].register_forward_hook(lambda module, args, output: caught.append(output))
        found: dict[int, Tensor] = {}
        try:
            with self._replaced(list(self.backbone.layers[: last + 1])):
                for indices in by_length(sequences, batch_size):
                    batch = self.batch([sequences[i] for i in indices])
                    self.backbone.model.base_model(input_ids=batch.ids, **self._reading(batch))
                    output = caught.pop()
                    self._blocks_return_tuples = isinstance(output, tuple)
                    hidden = output[0] if self._blocks_return_tuples else output
                    found |= {i: hidden[row, : len(sequences[i].ids)].clone() for row, i in enumerate(indices)}
        finally:
            handle.remove()
        return [found[i] for i in range(len(sequences))]

    def _reading(self, batch: Batch) -> dict:
        """How the model is to read a batch: what each token sees and where it stands."""
        if self.backbone.kind == "encoder":  # reads prompts alone, and numbers positions itself (RoBERTa from 2)
            return {"attention_mask": batch.mask}
        return {
            "attention_mask": batch.attention(self.backbone.dtype),
            "position_ids": batch.places,
            "use_cache": False,
        }

    @contextmanager
    def _steered(self, layers, batch: Batch, state: State | None) -> Iterator[None]:
        if state is None:
            yield
            return
        positions = self.sites.positions(batch.prompt_lengths, batch.starts, tuple(batch.ids.shape))
        state = {name: tensor.to(self.backbone.device) for name, tensor in state.items()}
        with intervene(layers, self.intervention, state, self.sites, positions):
            yield

    @contextmanager
    def _blocks(self, batch: Batch) -> Iterator[tuple]:
        """(blocks by number, inputs): the whole model on ids, or the part above the cached states on those."""
        if batch.hidden is None:
            yield self.backbone.layers, {"input_ids": batch.ids}
            return
        first = self.sites.layers[0]
        stand_in = _PassOn(self._blocks_return_tuples)
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

    def __init__(self, returns_tuple: bool):
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: Tensor, *args, **kwargs):
        return (hidden_states,) if self.returns_tuple else hidden_states
