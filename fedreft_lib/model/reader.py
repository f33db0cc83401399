"""Items as the model reads them: prompts, answers and labels as tokens, checked against the model's limits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import RunConfig
from ..data import FAMILIES, Example, Exchange, Item, Labelled, Question, render
from ..errors import DataError
from . import special_tokens
from .encoding import AnswerSet, ChoiceSet, LabelSet, TextSet
from .fast.hidden_cache import HiddenCache
from .steered import SteeredModel
from .tokens import Tokens, encode, encode_pair


@dataclass(frozen=True)
class Pool:
    """Questions that clients may get, encoded once for many federations: by prompt and options, and hidden states."""

    encoded: dict[tuple[str, tuple[str, ...]], Tokens] = field(default_factory=dict)
    hidden: dict[Tokens, Tensor] = field(default_factory=dict)  # empty where none are kept


class Reader:
    """Turns items into encoded sequences, with their hidden states below the first site while there is room.

    pool: what `pooled` of a reader with the same backbone, prompts and lengths has found.
    """

    def __init__(self, model: SteeredModel, config: RunConfig, *, caches: bool, pool: Pool | None = None):
        self.model, self.config, self.vocabulary = model, config, model.backbone.vocabulary
        self.cache = HiddenCache(model) if caches else None
        self.pool = pool or Pool()

    def pooled(self, questions: Sequence[Question]) -> Pool:
        examples = [render(question, self.config.prompt_format) for question in questions]
        encoded = {(each.prompt, each.options): self._encode(each, each.options) for each in examples}
        sequences = list(dict.fromkeys(encoded.values()))
        hidden = self._hidden(sequences)
        return Pool(encoded, dict(zip(sequences, hidden, strict=True)) if hidden else {})

    def training(self, items: Sequence[Item]) -> AnswerSet | ChoiceSet | LabelSet:
        """Items for training or for a loss. Raises DataError for a free answer where objective="choice"."""
        if items and isinstance(items[0], Labelled):
            return self._labels(items)
        if self.config.objective == "choice":
            if other := next((item for item in items if not isinstance(item, Question)), None):
                raise DataError(f'{other.task}: objective="choice" needs questions with choices, here is a free answer')
            return self.choices(items)
        sequences = []
        for item in items:
            if isinstance(item, Question):
                example = render(item, self.config.prompt_format)
                sequences.append(self._encode(example, [example.options[example.gold]]))
            else:
                sequences.append(self._exchange(item, [item.response]))
        return AnswerSet(sequences, self._hidden(sequences))

    def tests(self, items: Sequence[Item]) -> tuple[ChoiceSet | TextSet | LabelSet, ...]:
        """The parts of a test, one for each kind of item in it."""
        readers = {Question: self._options, Exchange: self._texts, Labelled: self._labels}
        of_kind = {kind: [item for item in items if isinstance(item, kind)] for kind in readers}
        return tuple(readers[kind](own) for kind, own in of_kind.items() if own)

    def _options(self, questions: Sequence[Question]) -> ChoiceSet:
        if self.config.scoring != "generation":
            return self.choices(questions)
        # The model reads only the prompts, from their first token on.
        examples = [render(question, self.config.prompt_format) for question in questions]
        # "the correct answer is answer2" is graded by its last word; a plain option is the answer's own words
        named = self.config.prompt_format == "llm_adapters"
        asked = [tuple(t.split()[-1] if named else t.strip() for t in example.options) for example in examples]
        labels = [self._as_written(options) for options in asked]
        return self._choice_set(examples, [self._encode(example, []) for example in examples], None, labels)

    def choices(self, questions: Sequence[Question]) -> ChoiceSet:
        """Questions with all their options after the prompt."""
        examples = [render(question, self.config.prompt_format) for question in questions]
        sequences = [self._encode(example, example.options) for example in examples]
        return self._choice_set(examples, sequences, self._hidden(sequences), [()] * len(examples))

    def _choice_set(
        self, examples: list[Example], sequences: list[Tokens], hidden: list[Tensor] | None, labels: list[tuple]
    ) -> ChoiceSet:
        return ChoiceSet(
            sequences,
            hidden,
            characters=[self._characters(*each) for each in zip(examples, sequences, strict=True)],
            gold=[example.gold for example in examples],
            tasks=[example.task for example in examples],
            labels=labels,
        )

    def _as_written(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels as the tokenizer decodes them: some tokenizers use small letters only. Raises DataError."""
        tokenizer = self.model.backbone.tokenizer
        each = special_tokens.own_tokens(tokenizer, [f" {label}" for label in labels])
        found = tuple(tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in each)
        if len(set(found)) < len(set(labels)) or not all(found):
            raise DataError(f"the tokenizer of {self.model.backbone.name} cannot tell the answers {labels} apart")
        return found

    def _characters(self, example: Example, sequence: Tokens) -> Tensor:
        """How many characters of each option the model reads."""
        texts = list(example.options)
        for i, lost in enumerate(sequence.cut[1:]):
            if lost:
                texts[i] = self.model.backbone.tokenizer.decode(sequence.answers[i], skip_special_tokens=True)
        return torch.tensor([max(len(text.strip()), 1) for text in texts])

    def _texts(self, exchanges: Sequence[Exchange]) -> TextSet:
        sequences = [self._exchange(item, [item.response]) for item in exchanges]
        prompts = [self._exchange(item, []) for item in exchanges]
        return TextSet(sequences, self._hidden(sequences), list(exchanges), prompts)

    def _labels(self, items: Sequence[Labelled]) -> LabelSet:
        sequences = [self._read(item.task, encode_pair, item.text_a, item.text_b) for item in items]
        return LabelSet(
            sequences,
            None,
            labels=[item.label for item in items],
            classes=[item.classes for item in items],
            tasks=[item.task for item in items],
        )

    def _exchange(self, item: Exchange, responses: Sequence[str]) -> Tokens:
        prompt = FAMILIES[self.config.benchmark].prompt(item, self.config.prompt_format)
        # A model that generates has to learn where a response ends.
        return self._read(item.task, encode, prompt, responses, end=True)

    def _encode(self, example: Example, answers: Sequence[str]) -> Tokens:
        if known := self.pool.encoded.get((example.prompt, tuple(answers))):
            return known
        # Options that are only compared need no end token.
        end = self.config.prompt_format == "llm_adapters"
        found = self._read(example.task, encode, example.prompt, answers, end=end)
        read = zip(map(str.strip, answers), found.answers, found.cut[1:], strict=True)
        whole = {(answer, tokens) for answer, tokens, lost in read if not lost}
        if len({tokens for _, tokens in whole}) < len(whole):
            raise DataError(f"{example.task}: the tokenizer makes the same tokens of different answers of {answers!r}")
        return found

    def _read(self, task: str, encoder: Callable[..., Tokens], *texts, **how) -> Tokens:
        """The encoder's tokens for an item's texts. Raises DataError for tokens that the model does not know."""
        backbone = self.model.backbone
        try:
            found = encoder(backbone.tokenizer, *texts, max_length=self.config.max_length, **how)
        except DataError as error:
            raise DataError(f"{task}: {error}") from None
        if 1 < backbone.segments <= max(found.segments, default=0):
            raise DataError(
                f"{task}: {backbone.name} tells {backbone.segments} texts apart, and its tokenizer numbers one "
                f"{max(found.segments)}; use the tokenizer that belongs to the model"
            )
        if (largest := max(found.ids)) >= self.vocabulary:
            token = backbone.tokenizer.convert_ids_to_tokens(largest)
            raise DataError(
                f"{task}: {backbone.name} has embeddings of {self.vocabulary} tokens, and its tokenizer makes token "
                f"{largest} ({token!r}) of a text; use the tokenizer that belongs to the model"
            )
        return found

    def _hidden(self, sequences: list[Tokens]) -> list[Tensor] | None:
        if sequences and all(sequence in self.pool.hidden for sequence in sequences):
            return [self.pool.hidden[sequence] for sequence in sequences]
        return self.cache.states(sequences) if self.cache else None
