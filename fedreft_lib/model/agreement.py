"""Trials that find out which ways to read a batch (ways.py) compute the same as the model itself, for any model.

The fast ways fit how most models are built, and are silently wrong for others:

    masks that separate options   wrong for recurrent or convolutional blocks, and for a text longer than a window
    only the output embeddings    wrong where a model scales or caps its logits, or has layers in between
    padding                       wrong where a model does not mask it everywhere

So each way is tried, from fast to slow, before a backbone is used. The correct values come from the model's own forward
pass over one text, without padding or mask. Texts are random tokens, the longest at least as long as any text that will
be read, so they reach the same windows.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from ..errors import FedReFTError
from .backbone import Backbone
from .fast.packed_attention import packs
from .tokens import Tokens
from .ways import Layout, Readable, Ways, known_to, setting, unchanged

# Largest difference between two correct computations: its root mean square over that of the values. On random tokens
# SmolLM2-135M has 3e-6 in float32 and up to 0.08 in bfloat16, and 0.5 or more where a window or an option leaks.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.2, torch.float16: 0.05}
OF_THE_HEAD = 1e-5  # the same products of the same numbers
OF_ANOTHER_OPTION = 1e-3  # where attention is masked, nothing passes between options
NEW = 4  # tokens that a trial generates
SHORTEST = 9  # tokens of a trial's shortest text: odd, and below any length at which positions change


class UnreadableError(FedReFTError):
    """A text that the model's own forward pass cannot read, because of its length or for another reason."""


def size_of(longest: int, config: PretrainedConfig, most: int | None = None) -> int:
    """The length of a trial for texts of up to `longest` tokens: 64, 128, 256, ..., or a window's, or the positions'.

    All texts up to this length are read in the same ways, so a few trials serve all. most: the length of the model's
    table of positions, where it has one.
    """
    size = 64
    while size < longest:
        size *= 2
    # Rotary positions may change beyond the length that a model was trained for.
    ends = (most, setting(config, "max_position_embeddings"), *windows(config))
    return min([size, *(end for end in ends if end and max(longest, 8) <= end < size)])


def found(model: Readable, size: int, writes: bool) -> Ways:
    """The fastest correct ways for texts of up to `size` tokens. writes: also try `cached`, for generation.

    Raises FedReFTError where no way is correct.
    """
    return _of_decoder(model, size, writes) if model.backbone.kind == "causal" else _of_encoder(model, size)


# ---- decoders -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Texts:
    """A trial's texts for a decoder: a long prompt with two options, a shorter text and a very short one.

    logits: the correct ones (T, V) of prompt + a, prompt + b, and the others.
    """

    prompt: list[int]
    a: list[int]
    b: list[int]
    others: list[list[int]]
    logits: list[Tensor]

    @property
    def n(self) -> list[int]:
        """Tokens of the answers of prompt + a and of the others."""
        return [len(self.a), *(min(len(self.a), len(ids) // 2) for ids in self.others)]

    def singles(self) -> list[Tokens]:
        texts = [[*self.prompt, *self.a], *self.others]
        return [Tokens(tuple(ids), len(ids) - n, (n,)) for ids, n in zip(texts, self.n, strict=True)]

    def forked(self, a: Sequence[int]) -> Tokens:
        return Tokens((*self.prompt, *a, *self.b), len(self.prompt), (len(self.a), len(self.b)))

    def logprobs(self, which: int, n: int) -> Tensor:
        """The correct log-probabilities (n,) of the last n tokens of a text."""
        ids = [[*self.prompt, *self.a], [*self.prompt, *self.b], *self.others][which]
        answer = torch.tensor(ids[-n:], device=self.logits[which].device)
        return self.logits[which][-n - 1 : -1].log_softmax(-1).gather(1, answer[:, None])[:, 0]


def _texts(backbone: Backbone, size: int) -> _Texts:
    """Raises FedReFTError where the model is no decoder, cannot be steered, or depends on texts that it read before."""
    n_a, n_b, n_other = min(12, size // 3), min(9, size // 4), max(size // 4, 4)
    drawn = _tokens(backbone, size + n_b + n_other + SHORTEST)
    prompt, a, b = drawn[: size - n_a], drawn[size - n_a : size], drawn[size : size + n_b]
    others = [drawn[size + n_b : -SHORTEST], drawn[-SHORTEST:][: max(size // 2, 2)]]
    logits = []
    for ids in others:
        with _watched(backbone, len(ids)):
            logits.append(_own(backbone, ids))
    with _watched(backbone, size):
        first = _own(backbone, [*prompt, *a])  # (size, V)
    second, at = _own(backbone, [*prompt, *b]), len(prompt)
    if not all(_agree(_own(backbone, ids), before, backbone) for ids, before in zip(others, logits, strict=True)):
        raise FedReFTError(
            f"{backbone.name} cannot be used: what it makes of a text depends on the texts that it has read before."
        )
    if not _agree(first[:at], second[:at], backbone):
        raise FedReFTError(
            f"{backbone.name} cannot be used as a decoder: what it makes of a token depends on the tokens after it."
        )
    return _Texts(prompt, a, b, others, [first, second, *logits])


@torch.no_grad()
def _of_decoder(model: Readable, size: int, writes: bool) -> Ways:
    backbone = model.backbone
    with unchanged(backbone.model):
        texts = _texts(backbone, size)

        def first_right(candidates: list[Ways]) -> Ways:
            return _first_right(backbone, candidates, lambda ways: _scores(model.read_by(ways), texts))

        bare = _tried(lambda: _agree(_bare(backbone, texts.others[0]), texts.logits[2], backbone, OF_THE_HEAD))
        ways = first_right([Ways(layout, bare) for layout in layouts(backbone, size)])
        if not writes or _tried(lambda: _goes_on(model.read_by(ways), texts, size)):
            return ways
        # Some models keep generated values in their modules, which the next batch would use: try without a cache.
        return first_right([replace(ways, cached=False)])


def _scores(trial: Readable, texts: _Texts) -> bool:
    """Whether the answers of a batch of texts of different lengths, and two options of one, have the correct values."""
    backbone = trial.backbone
    single = torch.cat([texts.logprobs(which, n) for which, n in zip((0, 2, 3), texts.n, strict=True)])
    if not _agree(trial.answer_logprobs(trial.batch(texts.singles()), None)[0], single, backbone):
        return False
    two = torch.cat([texts.logprobs(0, len(texts.a)), texts.logprobs(1, len(texts.b))])
    found = trial.answer_logprobs(trial.batch([texts.forked(texts.a)]), None)[0]
    if not _agree(found, two, backbone):
        return False
    if backbone.dtype == torch.float32:
        return True
    # With a convolution, an option sees a few tokens of the option before it. Lower precision could hide that.
    again = trial.answer_logprobs(trial.batch([texts.forked(texts.a[::-1])]), None)[0]
    return _agree(again[len(texts.a) :], found[len(texts.a) :], backbone, OF_ANOTHER_OPTION)


def _goes_on(trial: Readable, texts: _Texts, size: int) -> bool:
    """Whether the tokens after two prompts have the correct logits; the second text ends early."""
    whole = texts.singles()[:2]
    n = min(NEW, *(text.answer_lengths[0] for text in whole))
    device = trial.backbone.device
    following = torch.tensor([text.answers[0][:n] for text in whole], device=device)  # (2, n)
    values = [texts.logits[which][text.prompt_length - 1 :] for which, text in zip((0, 2), whole, strict=True)]
    text, rows, right = trial.continuation([text.bare for text in whole], None, size), [0, 1], []
    for i in range(n):
        right.append(_agree(text.logits(), torch.stack([values[row][i] for row in rows]), trial.backbone))
        ends = i == n - 2
        text.go_on(following[rows, i], torch.zeros(1, dtype=torch.long, device=device) if ends else None)
        rows = rows[:1] if ends else rows
    return all(right)


def _own(backbone: Backbone, ids: Sequence[int]) -> Tensor:
    """Logits (T, V) of the model's own forward pass over one text."""
    return _read(backbone, ids, known_to(backbone.model, {"use_cache": False})).logits[0].float()


def _bare(backbone: Backbone, ids: Sequence[int]) -> Tensor:
    """Logits (T, V) of a text from the output embeddings applied to last hidden states."""
    last = backbone.model.base_model(input_ids=torch.tensor([list(ids)], device=backbone.device)).last_hidden_state[0]
    return backbone.model.get_output_embeddings()(last).float()


# ---- encoders -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _of_encoder(model: Readable, size: int) -> Ways:
    backbone = model.backbone
    n_other = max(size // 4, 4)
    drawn = _tokens(backbone, size + n_other + SHORTEST)
    texts = [
        Tokens(tuple(ids), len(ids), segments=tuple(int(i >= len(ids) // 2) for i in range(len(ids))))
        for ids in (drawn[:size], drawn[size:-SHORTEST], drawn[-SHORTEST:][:size])
    ]
    with unchanged(backbone.model):
        right = []
        for text in texts:
            with _watched(backbone, len(text.ids)):
                right.append(_own_hidden(model, text))

        def is_right(ways: Ways) -> bool:
            trial = model.read_by(ways)
            hidden = trial.hidden_states(trial.batch(texts), None)
            return all(_agree(hidden[i, : len(value)], value, backbone) for i, value in enumerate(right))

        return _first_right(backbone, [Ways(layout) for layout in layouts(backbone, size)], is_right)


def _own_hidden(model: Readable, text: Tokens) -> Tensor:
    """Last hidden states (T, d) of the model's own forward pass over one text."""
    segments = model.segments(torch.tensor([text.segments], device=model.backbone.device))
    return _read(model.backbone, text.ids, segments).last_hidden_state[0].float()


# ---- both -----------------------------------------------------------------------------------------------------------


def _read(backbone: Backbone, ids: Sequence[int], more: dict) -> Any:
    """The output of the model's own forward pass for one text. Raises UnreadableError where the pass raises."""
    try:
        return backbone.model(input_ids=torch.tensor([list(ids)], device=backbone.device), **more)
    except Exception as error:  # of an unknown model
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UnreadableError(
            f"{backbone.name} cannot read a text of {len(ids)} tokens ({type(error).__name__}: {reason}): give a "
            "smaller max_length, or another backbone."
        ) from error


def layouts(backbone: Backbone, size: int) -> list[Layout]:
    """The layouts to try for texts of up to `size` tokens, from fast to slow."""
    packed: list[Layout] = ["packed"] if packs(backbone.model, size) else []
    if backbone.kind == "encoder":
        return [*packed, "together", "alone"]
    # In float32 a trial clearly shows a wrong mask. With lower precision, a known window is not left to a trial.
    known = backbone.dtype != torch.float32 and min(windows(backbone.model.config), default=size) < size
    return ["apart", "alone"] if known else [*packed, "together", "apart", "alone"]


def windows(config: PretrainedConfig) -> list[int]:
    """The numbers that the configuration, or a part of it, calls a window or an attention chunk."""

    def names_one(name: str) -> bool:  # "layers" and "pattern" say which blocks have a window
        return re.search("window|attention_chunk", name) is not None and not re.search("layers|pattern", name)

    def walk(part: Any, name: str = "") -> Iterator[int]:
        if isinstance(part, dict):
            for key, value in part.items():
                yield from walk(value, str(key))
        elif isinstance(part, list | tuple):
            for value in part:
                yield from walk(value, name)
        elif type(part) is int and part > 0 and names_one(name):
            yield part

    return list(walk(config.to_dict()))


def _first_right(backbone: Backbone, candidates: list[Ways], is_right: Callable[[Ways], bool]) -> Ways:
    for ways in candidates:
        if _tried(lambda ways=ways: is_right(ways)):
            return ways
    raise FedReFTError(
        f"{backbone.name} cannot be used: read in none of the ways that are known here does it give the values of its "
        f"own forward pass ({type(backbone.model).__name__})."
    )


def _tried(trial: Callable[[], bool]) -> bool:
    """Whether the trial succeeded. A model that cannot be read in some way may raise any error."""
    try:
        return trial()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False


def _agree(tried: Tensor, right: Tensor, backbone: Backbone, tolerance: float | None = None) -> bool:
    """Whether both are equal up to rounding; in tables (..., n), each row is compared."""
    tried, right = tried.float(), right.float()
    spread = (right - right.mean()).square().mean().sqrt()
    apart = (tried - right).square().mean(-1).sqrt().max()
    return bool(apart <= (TOLERANCE[backbone.dtype] if tolerance is None else tolerance) * spread)  # False for NaN


def _tokens(backbone: Backbone, n: int) -> list[int]:
    """n random tokens, the same for the same vocabulary; no special or added ones."""
    tokenizer = backbone.tokenizer
    known = min(len(tokenizer), backbone.vocabulary)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    plain = torch.tensor([i for i in range(known) if i not in special])
    drawn = torch.randint(len(plain), (n,), generator=torch.Generator().manual_seed(0))
    return plain[drawn].tolist()


@contextmanager
def _watched(backbone: Backbone, tokens: int) -> Iterator[None]:
    """Raises FedReFTError unless in this context each block is called once, in order, and returns (1, T, d)."""
    shape = (1, tokens, backbone.hidden_size)
    calls: list[tuple[int, bool]] = []

    def note(number: int):
        def hook(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            calls.append((number, isinstance(hidden, Tensor) and tuple(hidden.shape) == shape))

        return hook

    handles = [block.register_forward_hook(note(i)) for i, block in enumerate(backbone.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if calls != [(i, True) for i in range(backbone.n_layers)]:
        raise FedReFTError(
            f"{backbone.name} cannot be steered: its {backbone.n_layers} blocks are not passed once each, in order, "
            f"with a hidden state of width {backbone.hidden_size} for each token ({type(backbone.model).__name__})."
        )
