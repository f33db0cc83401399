"""Items as the model reads them: what each kind of item is trained on and tested by.

Question    its right choice, on top of the prompt     ChoiceSet   which choice is most likely, or is generated
Exchange    its response                               TextSet     what the model writes
Labelled    its class or score, by a head              LabelSet    what the head says
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn

from ..core.state import State
from ..data import Exchange
from ..data.cuts import Cuts, counted
from .steered import SteeredModel
from .tokens import Batch, Tokens


@dataclass(frozen=True)
class Encoded:
    """Items as the model reads them. Each field has an entry an item."""

    sequences: list[Tokens]
    hidden: list[Tensor] | None

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def cut(self) -> dict[str, int]:
        """How many of the prompts lost their beginning, and how many of the answers or options their end."""
        answers = [lost for sequence in self.sequences for lost in sequence.cut[1:]]
        return {"prompts": sum(any(s.cut[:1]) for s in self.sequences), "answers": sum(map(bool, answers))}

    def batch(
        self,
        model: SteeredModel,
        indices: Sequence[int],
        share: float | Tensor | None = None,
        owners: Tensor | None = None,
    ) -> Batch:
        """share: of the local branch, one for all rows or one for each item of the whole (see methods.branches.Blend).

        owners: of each row, where rows have states of their own.
        """
        hidden = None if self.hidden is None else [self.hidden[i] for i in indices]
        share = rows_share(share, indices, model.backbone.device)
        return model.batch([self.sequences[i] for i in indices], hidden=hidden, owners=owners, share=share)

    def subset(self, indices: Sequence[int]) -> Self:
        """The items at `indices`, with what is cached of them."""
        lists = {each.name: getattr(self, each.name) for each in fields(self)}
        return type(self)(**{name: None if of is None else [of[i] for i in indices] for name, of in lists.items()})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The items of several clients as one."""
        lists = {each.name: [getattr(part, each.name) for part in parts] for each in fields(cls)}
        return cls(**{name: None if None in of else [x for part in of for x in part] for name, of in lists.items()})


def rows_share(share: float | Tensor | None, indices: Sequence[int], device: torch.device) -> Tensor | None:
    """The shares (B,) of a batch's rows: `share` for all of them, or their own out of share (items,)."""
    if share is None:
        return None
    every = share[list(indices)] if isinstance(share, Tensor) else torch.full((len(indices),), float(share))
    return every.to(device, torch.float32)


@dataclass(frozen=True)
class AnswerSet(Encoded):
    """Prompts with their right answers, to train on or to take a loss of."""

    def losses(
        self, model: SteeredModel, indices: Sequence[int], state: State | None, *, share=None, owners=None, dropout=0.0
    ):
        """Negative log-likelihood (M,) of each answer token of these items (nats)."""
        return -model.answer_logprobs(self.batch(model, indices, share, owners), state, dropout)[0]

    def losses_in(self, i: int) -> int:
        """How many of `losses` are item i's."""
        return len(self.sequences[i].ids) - self.sequences[i].prompt_length


@dataclass(frozen=True)
class ChoiceSet(Encoded):
    """Questions to test: a sequence each, with all options on top of the prompt, or with none for generation."""

    characters: list[Tensor]  # of each option, as far as it is read
    gold: list[int]
    tasks: list[str]
    labels: list[tuple[str, ...]]  # the words a generation may answer with

    @property
    def prompts(self) -> list[Tokens]:
        """What a generation starts from."""
        return [sequence.bare for sequence in self.sequences]


@dataclass(frozen=True)
class TextSet(AnswerSet):
    """Exchanges to test: prompt and response, for the loss; a generation starts from the prompt alone, which has not
    made room for a response."""

    items: list[Exchange]
    prompts: list[Tokens]

    @property
    def tasks(self) -> list[str]:
        return [item.task for item in self.items]


@dataclass(frozen=True)
class LabelSet(Encoded):
    """Labelled texts, to train on or to test."""

    labels: list[int | float]
    classes: list[int]  # 0: a regression
    tasks: list[str]

    @property
    def cut(self) -> dict[str, int]:
        """How many of the texts lost their end."""
        return {"texts": sum(map(any, (sequence.cut for sequence in self.sequences)))}

    def losses(
        self, model: SteeredModel, indices: Sequence[int], state: State, *, share=None, owners=None, dropout=0.0
    ):
        """Cross-entropy, or squared error, (B,) of each of these items."""
        outputs = model.class_logits(self.batch(model, indices, share, owners), state, dropout)
        classes = torch.tensor([self.classes[i] for i in indices], device=outputs.device)
        labels = torch.tensor([float(self.labels[i]) for i in indices], device=outputs.device)
        # A task of fewer classes than the head has outputs (MNLI beside RTE) knows only its own.
        own = torch.arange(outputs.shape[1], device=outputs.device) < classes[:, None].clamp_min(1)
        masked = outputs.masked_fill(~own, float("-inf"))
        entropy = nn.functional.cross_entropy(masked, torch.where(classes > 0, labels, 0).long(), reduction="none")
        return torch.where(classes > 0, entropy, (outputs[:, 0] - labels).square())

    def losses_in(self, i: int) -> int:
        """How many of `losses` are item i's."""
        return 1


@dataclass(frozen=True)
class Client:
    """One client's data, as the model reads it."""

    name: str
    train: AnswerSet | LabelSet
    held_out: AnswerSet | LabelSet
    test: tuple[ChoiceSet | TextSet | LabelSet, ...]  # one for each kind of item that is in the test

    @property
    def cut(self) -> Cuts:
        """How many texts of each split did not fit into max_length; nothing where all did."""
        return counted(
            {"train": [self.train.cut], "held_out": [self.held_out.cut], "test": [part.cut for part in self.test]}
        )
