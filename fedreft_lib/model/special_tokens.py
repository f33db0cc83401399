"""Tokens that are not words: those before a text, those that end it, and the padding of a batch.

The tokens that a tokenizer puts before a text (bos, cls) come before every prompt. Those after a text (eos, sep) say
that the text ends, but a prompt continues, so they are left out. A training text ends with the tokenizer's eos. A
generated text ends with it, or with any end token in the model's generation config (chat models have several). Padding
is always masked, so any token that has an embedding will do. A special one disappears where generated ids become text.
"""

from contextlib import suppress
from functools import lru_cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import DataError, FedReFTError
from .architectures import kind_of

PROBES = ("a", "1", ".", "文")  # the first that the tokenizer has tokens for
IDS_ALONE = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}


def vocabulary(model: PreTrainedModel) -> int:
    """How many token embeddings the model has. Raises FedReFTError for a model without such a table."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError) as error:
        raise FedReFTError(
            f"{type(model).__name__} has no table of token embeddings; use a model like LLaMA, BERT or RoBERTa."
        ) from error


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a generated text, in ascending order; () where there are none."""
    named = {tokenizer.eos_token_id, *_named_ends(model)} - {None}
    return tuple(sorted(i for i in named if 0 <= i < vocabulary(model)))


def _named_ends(model: PreTrainedModel) -> list[int]:
    """The end tokens of the model's generation config, as transformers reads them. Raises FedReFTError."""
    named = getattr(getattr(model, "generation_config", None) or model.config, "eos_token_id", None)
    named = list(named) if isinstance(named, list | tuple) else [] if named is None else [named]
    if any(type(token) is not int for token in named):
        raise FedReFTError(f"eos_token_id of the generation config must be numbers of tokens, got {named!r}")
    return named


def settle(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token with an embedding and, where it has no end token, the model's. name: the backbone.

    Raises FedReFTError where no token is suitable for padding, or where the tokenizer is random.
    """
    if getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None):
        raise FedReFTError(
            f"The tokenizer of {name} drops merges at random (dropout in tokenizer.json), so a text has other tokens "
            "each time; set dropout to null there."
        )
    if tokenizer.eos_token_id is None and kind_of(model.config) == "causal":
        known = list(filter(None, tokenizer.convert_ids_to_tokens(end_ids(model, tokenizer))))
        if len(known) == 1:
            tokenizer.eos_token = known[0]
    # LLaMA-2 is padded with unk, as in pyreft, and LLaMA-3 with eos.
    special = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, *tokenizer.all_special_ids)
    usable = [i for i in special if i is not None and 0 <= i < vocabulary(model)]
    if not usable:
        raise FedReFTError(
            f"The tokenizer of {name} has no special token that the model has an embedding of (it has "
            f"{vocabulary(model)}), and padding needs one; set pad_token in its files."
        )
    if usable[0] != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(usable[0])


def end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text. Raises FedReFTError where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise FedReFTError(
            "The tokenizer has no end token (eos), and the model does not name one: a model that is to write has to "
            "learn where a text ends; set eos_token in the tokenizer's files."
        )
    return tokenizer.eos_token_id


def own_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Each text's tokens without added special tokens. Raises DataError for a text that the tokenizer cannot read."""
    try:
        return tokenizer(texts, add_special_tokens=False, **IDS_ALONE).input_ids
    except Exception as error:  # tokenizers raise a plain Exception for a word without a token
        raise DataError(f"the tokenizer cannot read {texts[0][:60]!r} or what follows it ({error})") from None


def in_front(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that the tokenizer puts before a text. Raises FedReFTError where they cannot be found."""
    return _in_front(tokenizer, *(getattr(tokenizer, f"add_{name}_token", None) for name in ("bos", "eos")))


@lru_cache(maxsize=1)  # per tokenizer and settings: the call takes as long as reading a short prompt
def _in_front(tokenizer: PreTrainedTokenizerBase, *settings: bool | None) -> tuple[int, ...]:
    """Compares a text with and without special tokens, since not every tokenizer says which it has added."""
    text, ids = "", []
    for text in PROBES:
        with suppress(DataError):  # a word without a token
            if ids := own_tokens(tokenizer, [text])[0]:
                break
    whole = tokenizer(text, **IDS_ALONE).input_ids
    for first in range(len(whole) - len(ids) + 1):
        if ids and whole[first : first + len(ids)] == ids:
            return tuple(whole[:first])
    raise FedReFTError(
        f"{type(tokenizer).__name__} has other tokens for {text!r} with special tokens than without, so it cannot be "
        "told which it adds to a text; use another tokenizer."
    )
