"""Text to padded batches: the tokens of a prompt, followed by the tokens of one or more answers.

A question is read once for all its options. Its sequence is the prompt followed by every option. An option sees the
prompt and itself but no other option, and its positions start right after the prompt. The result equals reading each
(prompt, option) pair separately, with a third of the tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.utils import rnn

from ..errors import ConfigError, DataError
from . import special_tokens
from .ways import TOGETHER, Ways


@dataclass(frozen=True)
class Tokens:
    """Token ids of a prompt and of the answers after it (none, one to train on, or all options of a question)."""

    ids: tuple[int, ...]
    prompt_length: int
    answer_lengths: tuple[int, ...] = ()
    segments: tuple[int, ...] = ()  # 0 and 1 for the two texts of a pair, where an encoder distinguishes them
    cut: tuple[int, ...] = ()  # how many tokens did not fit: of the prompt (or the pair), then of each answer

    @property
    def reach(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return self.prompt_length + max(self.answer_lengths, default=0)

    @cached_property
    def answers(self) -> list[tuple[int, ...]]:
        """The tokens of each answer."""
        ends = list(accumulate(self.answer_lengths, initial=self.prompt_length))
        return [self.ids[start:stop] for start, stop in pairwise(ends)]

    @property
    def bare(self) -> "Tokens":
        """The prompt only."""
        return replace(self, ids=self.ids[: self.prompt_length], answer_lengths=(), cut=self.cut[:1])

    @cached_property
    def branches(self) -> list[int]:
        """For each token the number of its answer, -1 in the prompt."""
        return [-1] * self.prompt_length + [a for a, n in enumerate(self.answer_lengths) for _ in range(n)]

    @cached_property
    def places(self) -> list[int]:
        """For each token its position id: every answer starts right after the prompt."""
        after = range(self.prompt_length, len(self.ids))
        return [*range(self.prompt_length), *(after.start + i for n in self.answer_lengths for i in range(n))]

    @cached_property
    def sources(self) -> list[int]:
        """For each answer token the index of the token that predicts it: the token before it, or the prompt's last."""
        found, index = [], self.prompt_length
        for n in self.answer_lengths:
            found += [self.prompt_length - 1, *range(index, index + n - 1)]
            index += n
        return found


@dataclass(frozen=True)
class Batch:
    """Sequences in a padded grid. `hidden`, (B, T, d) or (1, N, d), replaces the ids where hidden states are cached."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T), 1 at tokens
    places: Tensor  # (B, T), position ids
    branches: Tensor  # (B, T), see Tokens; also -1 at padding
    prompt_lengths: Tensor  # (B,)
    starts: Tensor  # (B,), index of the first token: 0 unless padded on the left
    targets: Tensor  # (M, 4): row, column of the predicting token, column of the answer token, number of the answer
    segments: Tensor | None = None  # (B, T), for encoders that distinguish the two texts of a pair
    hidden: Tensor | None = None
    share: Tensor | None = None  # (B,) or (B, n), see `encoding.rows_share`
    owners: Tensor | None = None  # (B,), the number of each row's state where there are several, see fast/owners.py
    ways: Ways = TOGETHER
    items: Tensor | None = None  # (B,), the sequence of each row, where a sequence has a row for each answer
    order: Tensor | None = None  # (B,), of a packed batch: the order of the rows in its one row of tokens

    @property
    def packed(self) -> bool:
        return self.order is not None

    @cached_property
    def index(self) -> Tensor:
        """Flat indices (N,) into (B, T) of a packed batch's tokens."""
        T = self.ids.shape[1]
        return (self.order[:, None] * T + torch.arange(T, device=self.ids.device))[self.mask[self.order].bool()]

    @cached_property
    def numbers(self) -> Tensor:
        """For each flat index into (B, T) of a packed batch, the number of its token; 0 where there is none."""
        numbers = torch.zeros(self.ids.numel(), dtype=torch.long, device=self.ids.device)
        return numbers.index_copy(0, self.index, torch.arange(len(self.index), device=self.ids.device))

    @cached_property
    def rows(self) -> Tensor:
        """The row (N,) of each token."""
        return self.index // self.ids.shape[1]

    def as_read(self, table: Tensor) -> Tensor:
        """A table (B, T) as the model reads it: unchanged, or (1, N) for a packed batch."""
        return table.flatten()[self.index].unsqueeze(0) if self.packed else table

    def as_grid(self, hidden: Tensor) -> Tensor:
        """The model's output as (B, T, d), from (1, N, d) for a packed batch."""
        if not self.packed:
            return hidden
        grid = hidden.new_zeros(self.ids.numel(), hidden.shape[2])
        return grid.index_copy(0, self.index, hidden[0]).view(*self.ids.shape, -1)

    @property
    def firsts(self) -> Tensor:
        """The first row of each sequence."""
        items = torch.arange(len(self.ids), device=self.ids.device) if self.items is None else self.items
        return torch.cat([items.new_ones(1), items.diff()]).nonzero()[:, 0]

    def rows_alone(self) -> Iterator["Batch"]:
        """Each row of a batch that is padded on the right, as a separate batch without targets."""
        for row, n in enumerate(self.mask.sum(1).tolist()):
            one = slice(row, row + 1)
            tables = {name: getattr(self, name)[one, :n] for name in ("ids", "mask", "places", "branches")}
            each = {name: getattr(self, name)[one] for name in ("prompt_lengths", "starts")}
            optional = {name: getattr(self, name) for name in ("share", "owners")}
            each |= {name: None if values is None else values[one] for name, values in optional.items()}
            segments = None if self.segments is None else self.segments[one, :n]
            yield Batch(**tables, **each, segments=segments, targets=self.targets[:0], ways=self.ways)

    @cached_property
    def branching(self) -> bool:
        """Whether any row has several answers, which do not see each other."""
        return int(self.branches.max()) > 0

    def attention(self, dtype: torch.dtype) -> Tensor:
        """What a decoder's tokens see: the mask (B, T), or, where that is not enough, (B or 1, 1, T, T) for scores."""
        if not self.branching and not self.packed:
            return self.mask
        order = torch.arange(self.ids.shape[1], device=self.ids.device)
        allowed = (order[None, :] <= order[:, None])[None]  # (1, T, T); padding is at the end, where no token sees it
        if self.branching:
            seen = self.branches[:, None, :]  # of the token that is seen
            own = self.branches[:, :, None]
            allowed = allowed & ((seen == -1) | (seen == own)) & self.mask[:, None, :].bool()
            itself = torch.eye(len(order), dtype=torch.bool, device=order.device)
            allowed |= itself  # for padding, too, or its softmax fails
        return added_to_scores(allowed[:, None], dtype)


def added_to_scores(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a token may see, and the lowest number of the dtype elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def encode(tokenizer, prompt: str, answers: Sequence[str], *, max_length: int, end: bool = False) -> Tokens:
    """Tokens of `prompt` and of each of `answers` after it, each followed by the end token if `end`.

    An answer has its tokens in the joint text `prompt + answer`, after the prompt's own tokens (as in
    lm-evaluation-harness). Where the joint text does not begin with the prompt's tokens (no token ends at the split, as
    in "un" + "able"), the answer is tokenised separately: the prompt is then the same for all answers.

    The special tokens that the tokenizer puts before a text (bos, cls) are kept, even where the prompt is cut. Those
    after a text (eos, sep) are left out, since a prompt continues.

    A prompt with its longest answer has at most max_length tokens. Where that is too few, the prompt loses its
    beginning, since the question is at its end, but keeps half of max_length or more, or all of itself. An answer loses
    what still does not fit, and then has no end token. `Tokens.cut` counts the lost tokens.

    Raises DataError for a prompt or an answer without tokens, ConfigError for a max_length that special tokens fill,
    FedReFTError where `end` is asked for and the tokenizer has no end token.
    """
    if isinstance(answers, str):
        raise TypeError(f"answers must be a list of texts, got the text {answers!r}")
    asked, *joint = special_tokens.own_tokens(tokenizer, [prompt, *(prompt + answer for answer in answers)])
    front, n = special_tokens.in_front(tokenizer), len(asked)
    stop = [special_tokens.end_of(tokenizer)] if end and answers else []
    found = []
    for answer, ids in zip(answers, joint, strict=True):
        # An unknown word at the prompt's end may absorb one at the answer's beginning.
        joined = ids[:n] == asked and not (asked and asked[-1] == tokenizer.unk_token_id)
        own = ids[n:] if joined else special_tokens.own_tokens(tokenizer, [answer])[0]
        if not own and not stop:
            raise DataError(f"the answer {answer!r} has no tokens: leave it out, or put words there")
        found.append([*own, *stop])
    if not asked:
        raise DataError(f"the prompt {prompt!r} has no tokens: put words there")

    longest = max(map(len, found), default=0)
    kept = min(len(front) + n, max(max_length - longest, (max_length + 1) // 2))
    if asked and kept <= len(front):
        raise ConfigError(f"max_length={max_length} is filled by {len(front)} special tokens before the text; raise it")
    own, room = kept - len(front), max_length - kept
    ids = (*front, *asked[n - own :], *(token for each in found for token in each[:room]))
    lost = (n - own, *(max(len(each) - room, 0) for each in found))
    return Tokens(ids, kept, tuple(len(each[:room]) for each in found), cut=lost)


def encode_pair(tokenizer, text_a: str, text_b: str, *, max_length: int) -> Tokens:
    """Tokens of one text or of a pair, as the encoder's own tokenizer joins them.

    Above max_length tokens, the tokenizer cuts the longer text, then both in turn, at the end (at the beginning, if its
    files say so). Raises DataError for a text without tokens, ConfigError for a max_length that special tokens fill.
    """
    pair = (text_b,) if text_b else ()

    def read(**how) -> tuple[tuple[int, ...], tuple[int, ...]]:
        found = tokenizer(text_a, *pair, return_token_type_ids=True, verbose=False, **how)
        return tuple(found.input_ids), tuple(found.token_type_ids)

    if not special_tokens.own_tokens(tokenizer, [text_a])[0]:
        raise DataError(f"the text {text_a!r} has no tokens: leave it out, or put words there")
    ids, segments = read()
    tokens = len(ids)
    if tokens > max_length:
        if max_length <= (special := tokenizer.num_special_tokens_to_add(pair=bool(pair))):
            raise ConfigError(f"max_length={max_length} is filled by {special} special tokens; raise it")
        ids, segments = read(truncation=True, max_length=max_length)
    return Tokens(ids, len(ids), segments=segments, cut=(tokens - len(ids),))


def apart(sequences: Sequence[Tokens]) -> tuple[list[Tokens], list[int]]:
    """A sequence for each (prompt, answer), one for a prompt without answers; and the index of each one's origin."""
    found, of = [], []
    for i, sequence in enumerate(sequences):
        prompt = sequence.bare
        each = [replace(prompt, ids=prompt.ids + answer, answer_lengths=(len(answer),)) for answer in sequence.answers]
        found += each or [prompt]
        of += [i] * (len(each) or 1)
    return found, of


def collate(
    sequences: Sequence[Tokens],
    pad_id: int,
    device: torch.device,
    *,
    side: str = "right",
    hidden: Sequence[Tensor] | None = None,
    ways: Ways = TOGETHER,
    owners: Tensor | None = None,
    share: Tensor | None = None,
) -> Batch:
    """Pad to the longest. side="left" is for generation, which is always padded.

    hidden: the cached hidden states (T_i, d) of each sequence. owners, share: (sequences,).

    Answers are numbered through the batch, in the order of the sequences. A packed batch is sorted by owner, and within
    an owner the longest sequence comes first: each owner's tokens are in the order of a batch of their own. Where
    options are read apart, each has a row, and cached hidden states of whole sequences are not used.
    """
    packed, items = ways.layout == "packed" and side == "right", None
    if not ways.whole and side == "right":
        sequences, of = apart(sequences)
        items, hidden = torch.tensor(of, device=device), None
        owners, share = (None if values is None else values[items] for values in (owners, share))
    longest = max(len(s.ids) for s in sequences)
    starts = [longest - len(s.ids) if side == "left" else 0 for s in sequences]

    def padded(values: Sequence[Sequence[int]], filler: int) -> Tensor:
        table = torch.full((len(sequences), longest), filler)
        for row, (each, start) in enumerate(zip(values, starts, strict=True)):
            table[row, start : start + len(each)] = torch.tensor(each)
        return table.to(device)

    targets, answers = [], 0
    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        columns = range(sequence.prompt_length, len(sequence.ids))
        for source, column in zip(sequence.sources, columns, strict=True):
            targets.append((row, start + source, start + column, answers + sequence.branches[column]))
        answers += len(sequence.answer_lengths)
    stacked = None
    order = by_length(sequences, len(sequences))[0] if packed else None
    if packed and owners is not None:
        order.sort(key=owners.tolist().__getitem__)
    if hidden is not None:
        together = torch.cat([hidden[i] for i in order])[None] if packed else rnn.pad_sequence(hidden, batch_first=True)
        stacked = together.to(device)
    return Batch(
        ids=padded([s.ids for s in sequences], pad_id),
        mask=padded([[1] * len(s.ids) for s in sequences], 0),
        places=padded([s.places for s in sequences], 0),
        branches=padded([s.branches for s in sequences], -1),
        prompt_lengths=torch.tensor([s.prompt_length for s in sequences], device=device),
        starts=torch.tensor(starts, device=device),
        targets=torch.tensor(targets, dtype=torch.long, device=device).reshape(-1, 4),
        segments=padded([s.segments for s in sequences], 0) if any(s.segments for s in sequences) else None,
        hidden=stacked,
        share=share,
        owners=owners,
        ways=ways,
        items=items,
        order=torch.tensor(order, device=device) if packed else None,
    )


def by_length(sequences: Sequence[Tokens], size: int) -> list[list[int]]:
    """Indices in batches of `size` with little padding: longest first, equal lengths in the given order."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].ids))
    return [order[i : i + size] for i in range(0, len(order), size)]
