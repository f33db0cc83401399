"""Questions read at their prompts' last tokens alone.

Where an intervention edits only the last token of a prompt (positions "l1") and every option is one token, a state
changes one token of a text: the tokens before it never see it. So of a text there is kept, once for all states,

    h (d,)              the output of block `adapter.below` at the last token
    K, V (g, T - 1, n)  keys and values of the tokens before it, in each block above

and a pass computes one token a text, from h up, and the logits of the options alone. The plain counterpart is
`SteeredModel.answer_logprobs`; the two differ by rounding. Here attention is computed in float32.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ...core.sites import Positions, edited
from ...core.state import State
from ..tokens import Tokens, by_length
from .frozen_block import in_few_passes
from .owners import edit_by_owner
from .packed_attention import Attends

AT_ONCE = 32  # texts of a pass that keeps them
LARGEST = 2**30  # bytes of what is kept


class LastTokens:
    """What is kept of the prompts of `sequences` (see the module), and the scores of their options.

    hidden: their hidden states, as `SteeredModel.hidden_below` gives them. The model must be one that `reads` allows.
    """

    def __init__(self, model: Any, sequences: Sequence[Tokens], hidden: Sequence[Tensor]):
        device, below = model.backbone.device, model.adapter.below
        longest = max(s.prompt_length for s in sequences) - 1
        self.h = torch.stack([h[s.prompt_length - 1] for s, h in zip(sequences, hidden, strict=True)]).to(device)
        self.places = torch.tensor([s.prompt_length - 1 for s in sequences], device=device)  # (n,)
        earlier = torch.arange(longest, device=device) < self.places[:, None]
        self.mask = torch.zeros(earlier.shape, device=device).masked_fill(~earlier, float("-inf"))[:, None, None]
        counts = torch.tensor([len(s.answers) for s in sequences])
        ids = torch.zeros(len(sequences), int(counts.max()), dtype=torch.long)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence.answers)] = torch.tensor([answer[0] for answer in sequence.answers])
        self.vocabulary, options = ids.unique(return_inverse=True)
        self.options, self.vocabulary = options.to(device), self.vocabulary.to(device)  # (n, O) into the vocabulary
        self.absent = (torch.arange(ids.shape[1]) >= counts[:, None]).to(device)
        self.keys: dict[int, Tensor] = {}  # block: (n, g, T - 1, head)
        self.values: dict[int, Tensor] = {}
        with torch.no_grad():
            for indices in by_length([s.bare for s in sequences], AT_ONCE):
                self._keep(model, sequences, hidden, indices)
        assert min(self.keys, default=below + 1) > below

    def _keep(self, model: Any, sequences: Sequence[Tokens], hidden: Sequence[Tensor], indices: list[int]) -> None:
        prompts = [sequences[i].bare for i in indices]
        batch = model.batch(prompts, hidden=[hidden[i][: sequences[i].prompt_length] for i in indices])
        reading = model.reading(batch)
        reading["packing"] = recorded = _Recorded(reading["packing"])
        with model.blocks(batch) as (_, inputs):
            model.backbone.model.base_model(**inputs, **reading)
        T = min(batch.ids.shape[1], self.mask.shape[-1])
        for layer, found in recorded.found.items():
            for kept, x in zip((self.keys, self.values), found, strict=True):  # x (1, g, N, n)
                _, g, _, n = x.shape
                if layer not in kept:
                    kept[layer] = torch.zeros(len(self.places), g, self.mask.shape[-1], n, device=x.device)
                grid = batch.as_grid(x[0].transpose(0, 1).flatten(1)[None]).unflatten(2, (g, n))  # (B, T, g, n)
                kept[layer][torch.tensor(indices), :, :T] = grid[:, :T].transpose(1, 2).float()

    def option_scores(
        self, model: Any, numbers: Sequence[int], state: State | None, share: Tensor | None, owners: Tensor | None
    ) -> Tensor:
        """Logits (B, O) of the options of the texts with these numbers: log-likelihoods up to one number for each text.

        -inf where a text has fewer than O options. share, owners: see `tokens.Batch`.
        """
        which = torch.tensor(numbers, device=self.h.device)
        rows = torch.arange(len(numbers), device=which.device)
        positions = Positions((1, len(rows)), {"suffix": rows}, {"suffix": rows})
        base, first = model.backbone.model.base_model, model.adapter.below
        blocks = model.stand_in(first)
        with ExitStack() as stack:
            stack.enter_context(in_few_passes(blocks))
            stack.enter_context(model.replaced(blocks))
            if read := model.read_in_blocks(state or {}):
                kind, sites = model.adapter.kind, model.adapter.sites
                edit = edit_by_owner(kind, read, sites, positions, share=share, owners=owners)
                stack.enter_context(edited(dict(enumerate(blocks, first)), *edit))
            hidden = base(
                inputs_embeds=self.h[which][None],
                attention_mask=self.h.new_zeros(1, 1, 1, 1),  # only so that transformers makes none
                position_ids=self.places[which][None],
                use_cache=False,
                packing=_OneToken(self, which),
            ).last_hidden_state[0]
        weight = model.backbone.model.get_output_embeddings().weight[self.vocabulary]
        logits = (hidden @ weight.T).float().gather(1, self.options[which])
        return logits.masked_fill(self.absent[which], float("-inf"))


def reads(model: Any, sequences: Sequence[Tokens]) -> bool:
    """Whether `LastTokens` can be kept of these sequences, with this model and its adapter, and there is room."""
    sites = getattr(model.adapter, "sites", None)
    if sites is None or (sites.prefix, sites.suffix) != (0, 1) or not model.can_start_in_the_middle or not sequences:
        return False
    if any(not s.answers or set(s.answer_lengths) != {1} for s in sequences):
        return False
    ways = model.ways(max(s.reach for s in sequences))
    config = model.backbone.model.config
    above = model.backbone.n_layers - 1 - model.adapter.below
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    size = 8 * width * above * len(sequences) * max(s.prompt_length for s in sequences)
    return ways.layout == "packed" and ways.bare and size <= LARGEST


class _Recorded:
    """Attention as by `packing`, whose keys and values are kept by block."""

    def __init__(self, packing: Attends):
        self.packing, self.found = packing, {}

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *more: Any) -> Tensor:
        self.found[module.layer_idx] = key, value
        return self.packing.attend(module, query, key, value, *more)


class _OneToken:
    """Attention of one token for each text to itself and to what is kept of the tokens before it."""

    def __init__(self, kept: LastTokens, which: Tensor):
        self.kept, self.which = kept, which

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, more: dict
    ) -> Tensor:
        K, V = (of[module.layer_idx][self.which] for of in (self.kept.keys, self.kept.values))  # (B, g, T - 1, n)
        own_K, own_V = (x[0].transpose(0, 1).unsqueeze(2).float() for x in (key, value))  # (B, g, 1, n)
        B, g, T, n = K.shape
        Q = query[0].transpose(0, 1).reshape(B, g, -1, n).float() * (n**-0.5 if scaling is None else scaling)
        before = Q @ K.mT + self.kept.mask[self.which]  # (B, g, h / g, T - 1)
        P = torch.cat([before, (Q * own_K).sum(-1, keepdim=True)], -1).softmax(-1)
        read = P[..., :T] @ V + P[..., T:] * own_V
        return read.reshape(1, B, -1, n).to(query.dtype)
