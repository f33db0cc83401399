"""Which ways of reading a batch (ways.py) compute what the model itself computes: found out by trying, for any model.

The fast ways lean on how most models are built, and are wrong without a word where one is built otherwise: masks that
keep options apart and take the place of a sliding window, where a block is recurrent or a convolution or the text is
longer than the window; the output embeddings alone, where a model scales or caps its logits or has layers in between;
padding, where it is not masked everywhere. So before a backbone is used each way is tried, from fast to slow.

The right values are the model's own forward pass over one text, with neither padding nor mask. Texts are random tokens,
at least as long as the longest text that is to be read, so every window is met that such texts meet.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from .attention import packs
from .batches import Sequence
from .errors import FedReFTError
from .ways import Layout, Ways, known_to, setting

if TYPE_CHECKING:
    from .backbone import Backbone
    from .steering import SteeredModel

# How far two computations of the same may be apart: root mean squares, the difference's over the values'. On random
# tokens SmolLM2-135M has 3e-6 in float32 and up to 0.08 in bfloat16, and 0.5 or more where a window or an option leaks.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.2, torch.float16: 0.05}
OF_THE_HEAD = 1e-5  # the same products of the same numbers
OF_ANOTHER_OPTION = 1e-3  # where attention is masked, nothing at all comes through
NEW = 4  # tokens that are generated in a trial


class UnreadableError(FedReFTError):
    """A text that the model's own forward pass does not take, for its length or otherwise."""


def size_of(longest: int, config: PretrainedConfig, most: int | None = None) -> int:
    """The length of a trial for texts of up to `longest` tokens: 64, 256, 1024, ..., or a window's, or the positions'.

    All texts up to there are read in the same ways, so a few trials serve all. most: tokens that there are positions
    for, where a table ends them.
    """
    size = 64
    while size < longest:
        size *= 4
    # Rotary positions may change behind the length that a model was trained for.
    ends = (most, setting(config, "max_position_embeddings"), *windows(config))
    return min([size, *(end for end in ends if end and max(longest, 8) <= end < size)])


def found(model: "SteeredModel", size: int) -> Ways:
    """The fastest right ways for texts of up to `size` tokens. Raises FedReFTError where there are none."""
    return (_of_decoder if model.backbone.kind == "causal" else _of_encoder)(model, size)


# ---- decoders -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _of_decoder(model: "SteeredModel", size: int) -> Ways:
    backbone = model.backbone
    n_a, n_b = min(12, size // 3), min(9, size // 4)  # tokens of two options
    drawn = _tokens(backbone, size + n_b + max(size // 4, 4))
    prompt, a, b = drawn[: size - n_a], drawn[size - n_a : size], drawn[size : size + n_b]
    other = drawn[size + n_b :]  # a shorter text
    n_other = min(n_a, len(other) // 2)
    forked = Sequence((*prompt, *a, *b), len(prompt), (n_a, n_b))
    short = Sequence(tuple(other), len(other) - n_other, (n_other,))
    single = Sequence((*prompt, *a), len(prompt), (n_a,))

    with _watched(backbone, size):
        first = _own(backbone, [*prompt, *a])  # (size, V)
    with _watched(backbone, len(other)):
        third = _own(backbone, other)
    second = _own(backbone, [*prompt, *b])
    at = len(prompt)
    if not _agree(first[:at], second[:at], backbone):
        raise FedReFTError(
            f"{backbone.name} cannot be used as a decoder: what it makes of a token depends on the tokens after it."
        )
    of_a, of_short = _of_answer(first, at, a), _of_answer(third, short.prompt_length, other)
    right = {"one": torch.cat([of_a, of_short, of_short]), "two": torch.cat([of_a, _of_answer(second, at, b)])}
    texts = {"one": [single, short, short], "two": [forked]}  # batches of unlike sizes: some models remember the last
    other_a = Sequence((*prompt, *reversed(a), *b), len(prompt), (n_a, n_b))

    def is_right(ways: Ways) -> bool:
        trial = model.read_by(ways)
        found = {name: trial.answer_logprobs(trial.batch(text), None)[0] for name, text in texts.items()}
        if not all(_agree(found[name], right[name], backbone) for name in texts):
            return False
        # A convolution shows an option a few tokens of the one before it, which less precision could hide.
        again = trial.answer_logprobs(trial.batch([other_a]), None)[0]
        return _agree(again[n_a:], found["two"][n_a:], backbone, OF_ANOTHER_OPTION)

    bare = _tried(lambda: _agree(_bare(backbone, other), third, backbone, OF_THE_HEAD))
    ways = _first_right(backbone, [Ways(layout, bare) for layout in _layouts(backbone, size)], is_right)

    prompts = [Sequence(tuple(prompt), at), Sequence(tuple(other[:-n_other]), short.prompt_length)]
    following = torch.tensor([a[:n_other], other[-n_other:]], device=backbone.device)  # (2, n_other)
    values = [(first[at - 1 :], third[short.prompt_length - 1 :])[row] for row in range(2)]

    def goes_on() -> bool:
        """Both texts, of which the second ends early."""
        text, rows, right = model.read_by(ways).continuation(prompts, None, size), torch.arange(2), []
        for i in range(min(NEW, n_other)):
            right.append(_agree(text.logits(), torch.stack([values[row][i] for row in rows.tolist()]), backbone))
            ends = i == min(NEW, n_other) - 2
            text.go_on(following[rows, i], torch.arange(1, device=backbone.device) if ends else None)
            rows = rows[:1] if ends else rows
        return all(right)

    if _tried(goes_on):
        return ways
    # Some models keep what they generated in their modules, where the next batch meets it.
    return _first_right(backbone, [replace(ways, cached=False)], is_right)


def _own(backbone: "Backbone", ids: Many[int]) -> Tensor:
    """Logits (T, V) of the model's own forward pass over one text."""
    model = backbone.model
    try:
        given = known_to(model, {"use_cache": False})
        return model(input_ids=torch.tensor([list(ids)], device=backbone.device), **given).logits[0].float()
    except Exception as error:  # of a model that nobody here has met
        raise _unreadable(backbone, len(ids), error) from error


def _of_answer(logits: Tensor, prompt_length: int, ids: Many[int]) -> Tensor:
    """Log-probabilities of the answer at the end of a text; of `ids` the last that logits (T, V) leave for it."""
    n = len(logits) - prompt_length
    answer = torch.tensor(list(ids)[-n:], device=logits.device)
    return logits[prompt_length - 1 : -1].log_softmax(-1).gather(1, answer[:, None])[:, 0]


def _bare(backbone: "Backbone", ids: Many[int]) -> Tensor:
    """Logits (T, V) of a text by the output embeddings on last hidden states."""
    last = backbone.model.base_model(input_ids=torch.tensor([list(ids)], device=backbone.device)).last_hidden_state[0]
    return backbone.model.get_output_embeddings()(last).float()


# ---- encoders -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _of_encoder(model: "SteeredModel", size: int) -> Ways:
    backbone = model.backbone
    drawn = _tokens(backbone, size + max(size // 4, 2))
    texts = [
        Sequence(tuple(ids), len(ids), segments=tuple(int(i >= len(ids) // 2) for i in range(len(ids))))
        for ids in (drawn[:size], drawn[size:])
    ]
    right = []
    for text in texts:
        with _watched(backbone, len(text.ids)):
            right.append(_own_hidden(model, text))

    def is_right(ways: Ways) -> bool:
        trial = model.read_by(ways)
        hidden = trial.hidden_states(trial.batch(texts), None).float()
        return all(_agree(hidden[i, : len(value)], value, backbone) for i, value in enumerate(right))

    return _first_right(backbone, [Ways(layout) for layout in _layouts(backbone, size)], is_right)


def _own_hidden(model: "SteeredModel", text: Sequence) -> Tensor:
    """Last hidden states (T, d) of the model's own forward pass over one text."""
    backbone = model.backbone
    segments = model.segments(torch.tensor([text.segments], device=backbone.device))
    try:
        ids = torch.tensor([text.ids], device=backbone.device)
        return backbone.model(input_ids=ids, **segments).last_hidden_state[0].float()
    except Exception as error:
        raise _unreadable(backbone, len(text.ids), error) from error


# ---- both -----------------------------------------------------------------------------------------------------------


def _layouts(backbone: "Backbone", size: int) -> list[Layout]:
    """From fast to slow."""
    packed: list[Layout] = ["packed"] if packs(backbone.model, size) else []
    if backbone.kind == "encoder":
        return [*packed, "together", "alone"]
    # float32 shows by far what a mask leaves out; with less precision, a window that is known is not left to a trial.
    known = backbone.dtype != torch.float32 and min(windows(backbone.model.config), default=size) < size
    return ["apart", "alone"] if known else [*packed, "together", "apart", "alone"]


def windows(config: PretrainedConfig) -> list[int]:
    """The numbers that the configuration, or a part of it, calls a window or a chunk of attention."""

    def walk(part: Any, name: str = "") -> Iterator[int]:
        if isinstance(part, dict):
            for key, value in part.items():
                yield from walk(value, str(key))
        elif isinstance(part, list | tuple):
            for value in part:
                yield from walk(value, name)
        elif type(part) is int and part > 0 and ("window" in name or "attention_chunk" in name):
            yield part

    return list(walk(config.to_dict()))


def _first_right(backbone: "Backbone", candidates: list[Ways], is_right: Callable[[Ways], bool]) -> Ways:
    for ways in candidates:
        if _tried(lambda ways=ways: is_right(ways)):
            return ways
    raise FedReFTError(
        f"{backbone.name} cannot be used: read in none of the ways that are known here does it give the values of its "
        f"own forward pass ({type(backbone.model).__name__})."
    )


def _tried(trial: Callable[[], bool]) -> bool:
    """Whether it was right; a model that cannot be read in some way raises what it likes."""
    try:
        return trial()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False


def _agree(tried: Tensor, right: Tensor, backbone: "Backbone", tolerance: float | None = None) -> bool:
    """Whether they are the same but for rounding; of tables (..., n), each row."""
    tried, right = tried.float(), right.float()
    spread = (right - right.mean()).square().mean().sqrt()
    apart = (tried - right).square().mean(-1).sqrt().max()
    return bool(apart <= (TOLERANCE[backbone.dtype] if tolerance is None else tolerance) * spread)  # no NaN is


def _tokens(backbone: "Backbone", n: int) -> list[int]:
    """n random tokens, the same for the same vocabulary; none that means something to the model."""
    tokenizer = backbone.tokenizer
    known = min(len(tokenizer), len(backbone.model.get_input_embeddings().weight))
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    plain = torch.tensor([i for i in range(known) if i not in special])
    drawn = torch.randint(len(plain), (n,), generator=torch.Generator().manual_seed(0))
    return plain[drawn].tolist()


@contextmanager
def _watched(backbone: "Backbone", tokens: int) -> Iterator[None]:
    """Raises FedReFTError unless within this context each block is called once, in order, and hands on (1, T, d)."""
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


def _unreadable(backbone: "Backbone", tokens: int, error: Exception) -> "UnreadableError":
    reason = (str(error).strip().splitlines() or [""])[0]
    return UnreadableError(
        f"{backbone.name} cannot read a text of {tokens} tokens ({type(error).__name__}: {reason}): give a smaller "
        "max_length, or another backbone."
    )
