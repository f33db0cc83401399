"""Items as the model reads them: what each kind of item trains, and how it is tested.

             is trained on                              is tested by
Question     its correct choice, after the prompt       ChoiceSet   the most likely or the generated choice
             (objective="choice": a ChoiceSet, too)
Exchange     its response                               TextSet     the text that the model generates
Labelled     its class or score, by a head              LabelSet    the output of the head
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn

from ..core.state import State
from ..data import Exchange
from ..data.cuts import Cuts, counted
from .fast.last_token import LastTokens
from .steered import SteeredModel
from .tokens import Batch, Tokens, by_length

LAST_TOKENS = 256  # items of a pass without gradients that reads one token of each


@dataclass(frozen=True)
class Encoded:
    """Items as the model reads them. Each field has one entry per item."""

    sequences: list[Tokens]
    hidden: list[Tensor] | None

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def cut(self) -> dict[str, int]:
        """How many prompts lost their beginning, and how many answers or options lost their end."""
        answers = [lost for sequence in self.sequences for lost in sequence.cut[1:]]
        return {"prompts": sum(any(s.cut[:1]) for s in self.sequences), "answers": sum(map(bool, answers))}

    def batch(
        self,
        model: SteeredModel,
        indices: Sequence[int],
        share: float | Tensor | None = None,
        owners: Tensor | None = None,
    ) -> Batch:
        """The items at `indices` as a batch.

        share: see `rows_share`.
        owners: the number of each row's state, where rows have their own.
        """
        hidden = None if self.hidden is None else [self.hidden[i] for i in indices]
        share = rows_share(share, indices, model.backbone.device)
        return model.batch([self.sequences[i] for i in indices], hidden=hidden, owners=owners, share=share)

    def in_passes(self, size: int) -> list[list[int]]:
        """All indices, in passes of `size` items of similar length."""
        return by_length(self.sequences, size)

    def subset(self, indices: Sequence[int]) -> Self:
        """The items at `indices`, with their cached hidden states."""
        lists = {each.name: getattr(self, each.name) for each in fields(self)}
        return type(self)(**{name: None if of is None else [of[i] for i in indices] for name, of in lists.items()})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The items of several clients as one."""
        lists = {each.name: [getattr(part, each.name) for part in parts] for each in fields(cls)}
        return cls(**{name: None if None in of else [x for part in of for x in part] for name, of in lists.items()})


def rows_share(share: float | Tensor | None, indices: Sequence[int], device: torch.device) -> Tensor | None:
    """The shares (B,) or (B, n) of a batch's rows, for states that have branches (methods.branches).

    share: the local branch's share of two, for all or for each item, (items,); or each item's shares of n, (items, n).
    """
    if share is None:
        return None
    every = share[list(indices)] if isinstance(share, Tensor) else torch.full((len(indices),), float(share))
    return every.to(device, torch.float32)


@dataclass(frozen=True)
class AnswerSet(Encoded):
    """Prompts with their correct answers, for training or for a loss."""

    def losses(
        self, model: SteeredModel, indices: Sequence[int], state: State | None, *, share=None, owners=None, dropout=0.0
    ):
        """Negative log-likelihood (M,) of each answer token of these items, in nats."""
        return -model.answer_logprobs(self.batch(model, indices, share, owners), state, dropout)[0]

    def losses_in(self, i: int) -> int:
        """How many entries of `losses` belong to item i."""
        return len(self.sequences[i].ids) - self.sequences[i].prompt_length


@dataclass(frozen=True)
class ChoiceSet(Encoded):
    """Questions: one sequence each, with all options after the prompt, or with none for generation."""

    characters: list[Tensor]  # the number in each option, without what was cut
    gold: list[int]
    tasks: list[str]
    labels: list[tuple[str, ...]]  # the answer words of a generation
    last: list[tuple[LastTokens, int]] | None = None  # what is kept of each item, and its number there

    def in_passes(self, size: int) -> list[list[int]]:
        return by_length(self.sequences, size if self.last is None else max(size, LAST_TOKENS))

    def option_scores(
        self, model: SteeredModel, indices: Sequence[int], state: State | None, *, share=None, owners=None, dropout=0.0
    ) -> Tensor:
        """Log-likelihoods (B, most options) of these items' options, up to a number for each item; -inf: no option.

        The sum over an option's tokens. They are read at the prompts' last tokens alone where `last` is there.
        """
        if self.last is not None and not dropout:
            kept, numbers = self.last[0][0], [self.last[i][1] for i in indices]
            return kept.option_scores(model, numbers, state, rows_share(share, indices, model.backbone.device), owners)
        logprobs, answer = model.answer_logprobs(self.batch(model, indices, share, owners), state, dropout)
        counts = [len(self.sequences[i].answer_lengths) for i in indices]
        exact = logprobs if logprobs.device.type == "mps" else logprobs.double()  # Apple's GPUs have no float64
        totals = exact.new_zeros(sum(counts)).index_add(0, answer, exact)
        return nn.utils.rnn.pad_sequence(list(totals.split(counts)), batch_first=True, padding_value=float("-inf"))

    def losses(
        self, model: SteeredModel, indices: Sequence[int], state: State | None, *, share=None, owners=None, dropout=0.0
    ) -> Tensor:
        """Negative log-likelihood (B,) of each item's correct option among its options, in nats."""
        found = self.option_scores(model, indices, state, share=share, owners=owners, dropout=dropout)
        gold = torch.tensor([self.gold[i] for i in indices], device=found.device)
        return nn.functional.cross_entropy(found, gold, reduction="none").float()

    def losses_in(self, i: int) -> int:
        """How many entries of `losses` belong to item i."""
        return 1

    @property
    def prompts(self) -> list[Tokens]:
        """The prompts for generation."""
        return [sequence.bare for sequence in self.sequences]


@dataclass(frozen=True)
class TextSet(AnswerSet):
    """Test exchanges: prompt and response, for the loss."""

    items: list[Exchange]
    prompts: list[Tokens]  # for generation: not cut to make room for a response

    @property
    def tasks(self) -> list[str]:
        return [item.task for item in self.items]


@dataclass(frozen=True)
class LabelSet(Encoded):
    """Labelled texts, for training or testing."""

    labels: list[int | float]
    classes: list[int]  # 0: a regression
    tasks: list[str]

    @property
    def cut(self) -> dict[str, int]:
        """How many texts lost their end."""
        return {"texts": sum(map(any, (sequence.cut for sequence in self.sequences)))}

    def losses(
        self, model: SteeredModel, indices: Sequence[int], state: State, *, share=None, owners=None, dropout=0.0
    ):
        """Cross-entropy (B,) of each of these items, or squared error for a regression."""
        outputs = model.class_logits(self.batch(model, indices, share, owners), state, dropout)
        classes = torch.tensor([self.classes[i] for i in indices], device=outputs.device)
        labels = torch.tensor([float(self.labels[i]) for i in indices], device=outputs.device)
        # A task with fewer classes than the head has outputs (RTE next to MNLI) uses only its own.
        own = torch.arange(outputs.shape[1], device=outputs.device) < classes[:, None].clamp_min(1)
        masked = outputs.masked_fill(~own, float("-inf"))
        entropy = nn.functional.cross_entropy(masked, torch.where(classes > 0, labels, 0).long(), reduction="none")
        return torch.where(classes > 0, entropy, (outputs[:, 0] - labels).square())

    def losses_in(self, i: int) -> int:
        """How many entries of `losses` belong to item i."""
        return 1


@dataclass(frozen=True)
class Client:
    """One client's data, as the model reads it."""

    name: str
    train: AnswerSet | ChoiceSet | LabelSet
    held_out: AnswerSet | ChoiceSet | LabelSet
    test: tuple[ChoiceSet | TextSet | LabelSet, ...]  # one for each kind of item in the test

    @property
    def cut(self) -> Cuts:
        """How many texts of each split did not fit into max_length; empty where all did."""
        return counted(
            {"train": [self.train.cut], "held_out": [self.held_out.cut], "test": [part.cut for part in self.test]}
        )
