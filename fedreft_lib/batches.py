"""Text to padded batches: prompt and answer tokens, where the prompt begins and ends, which tokens are answers."""

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequence:
    """Token ids of a prompt and, after it, of an answer (which may be empty)."""

    ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Batch:
    """Padded sequences. `hidden` (B, T, d) stands in for the ids where states below the first site are cached."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T), 1 at tokens
    prompt_lengths: Tensor  # (B,)
    starts: Tensor  # (B,), index of the first token: 0 unless padded on the left
    hidden: Tensor | None = None

    @property
    def answers(self) -> Tensor:
        """(B, T) bool: the answer tokens."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device) - self.starts[:, None]
        return (place >= self.prompt_lengths[:, None]) & self.mask.bool()


def encode(tokenizer, prompt: str, answer: str, *, max_length: int, end: bool = False) -> Sequence:
    """Tokens of `prompt` followed by those of `answer`, and by the end token if `end`.

    The two are tokenised apart, so that the prompt has the same tokens and positions whatever answer follows. Where
    both do not fit into max_length, the prompt loses its beginning: the question stands at its end.
    """
    prompt_ids = tokenizer(prompt).input_ids
    answer_ids = tokenizer(answer, add_special_tokens=False).input_ids if answer else []
    if end:
        answer_ids = [*answer_ids, tokenizer.eos_token_id]
    prompt_ids = prompt_ids[-max(max_length - len(answer_ids), 1) :]
    return Sequence((*prompt_ids, *answer_ids), len(prompt_ids))


def collate(
    sequences: Many[Sequence],
    pad_id: int,
    device: torch.device,
    *,
    side: str = "right",
    hidden: Many[Tensor] | None = None,
) -> Batch:
    """Pad to the longest. side="left" is for generation. hidden: for each sequence its cached (T_i, d)."""
    longest = max(len(s.ids) for s in sequences)
    ids = torch.full((len(sequences), longest), pad_id)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    starts = torch.tensor([longest - len(s.ids) if side == "left" else 0 for s in sequences])
    for row, (sequence, start) in enumerate(zip(sequences, starts.tolist(), strict=True)):
        ids[row, start : start + len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, start : start + len(sequence.ids)] = 1
    stacked = None
    if hidden is not None:
        stacked = torch.nn.utils.rnn.pad_sequence(list(hidden), batch_first=True).to(device)
    lengths = torch.tensor([s.prompt_length for s in sequences])
    return Batch(ids.to(device), mask.to(device), lengths.to(device), starts.to(device), stacked)


def by_length(sequences: Many[Sequence], size: int) -> list[list[int]]:
    """Indices in batches of `size` with little padding: longest first, ties in the given order."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].ids))
    return [order[i : i + size] for i in range(0, len(order), size)]
