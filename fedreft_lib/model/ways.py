"""The ways to read the texts of a batch. `agreement` finds out which ways are correct for a model.

The *layouts*, the fastest first:

    packed     the tokens of all texts in one row (fast/packed_attention.py), a question's options after one prompt
    together   texts padded to the longest, a question's options after one prompt, separated by a mask
    apart      each prompt with each of its options as a separate text, padded; only the model's own mask
    alone      the same, one text after another

An encoder's texts have no options; in the layout "together" they are padded and masked in the model's own way. For
decoders there are also

    bare       the output embeddings turn last hidden states directly into logits; else the model's whole forward pass
               computes them, with everything that it does to logits
    cached     generation reads prompts padded on the left and continues with a key-value cache; else it reads the
               whole text again for each token
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from transformers import PretrainedConfig

from ..errors import FedReFTError

Layout = Literal["packed", "together", "apart", "alone"]
SLOWER: dict[Layout, str] = {
    "packed": "",
    "together": "",
    "apart": "each option is read with a prompt of its own",
    "alone": "each text is read alone",
}


@dataclass(frozen=True)
class Ways:
    """How texts are read; see the module's docstring."""

    layout: Layout = "together"
    bare: bool = True
    cached: bool = True

    @property
    def whole(self) -> bool:
        """Whether a question is read as one text with all its options."""
        return self.layout in ("packed", "together")

    def __str__(self) -> str:
        slower = [
            SLOWER[self.layout],
            "" if self.bare else "logits are taken from the model's whole forward pass",
            "" if self.cached else "generation reads the whole text again for each token",
        ]
        return "; ".join(filter(None, slower)) or "fast"


class Readable(Protocol):
    """The part of `steered.SteeredModel` that trials and generation need. A protocol avoids a circular import."""

    backbone: Any
    adapter: Any

    def read_by(self, ways: Ways) -> "Readable": ...

    def batch(self, sequences: Sequence, **how: Any) -> Any: ...

    def hidden_states(self, batch: Any, state: Any) -> Tensor: ...

    def answer_logprobs(self, batch: Any, state: Any) -> tuple[Tensor, Tensor]: ...

    def logits_of(self, inputs: dict, places: Tensor, shape: tuple[int, int], bare: bool) -> Tensor: ...

    def logits_at(self, batch: Any, read: Tensor, state: Any) -> Tensor: ...

    def continuation(self, prompts: Sequence, state: Any, longest: int) -> Any: ...

    def steered(self, layers: Any, batch: Any, state: Any) -> AbstractContextManager: ...

    def segments(self, numbers: Tensor) -> dict: ...


def known_to(model: nn.Module, arguments: dict) -> dict:
    """The arguments that the model's forward pass has by name."""
    names = inspect.signature(model.forward).parameters
    return {name: value for name, value in arguments.items() if name in names}


def setting(config: PretrainedConfig, name: str) -> Any:
    """A value of a configuration; None where it has none, or a different one for each block."""
    try:
        return getattr(config, name, None)
    except Exception:  # of a configuration whose blocks differ
        return None


def settings(model: nn.Module, kind: Any) -> dict[tuple[str, str], Any]:
    """The attributes of this kind that a model's modules have: {(path, name): value}."""
    modules = dict(model.named_modules())
    each = ((path, name, value) for path, module in modules.items() for name, value in vars(module).items())
    return {(path, name): value for path, name, value in each if isinstance(value, kind)}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Raises FedReFTError where the model's settings change in this context, as BigBird's do after a short text."""

    before = settings(model, str | bool)
    yield
    after = settings(model, str | bool)
    changed = [(name, value) for (path, name), value in after.items() if before.get((path, name)) != value]
    if changed:
        name, value = changed[0]
        raise FedReFTError(
            f"A {type(model).__name__} cannot be used as it is set: it reads a text in another way for texts that it "
            f"has read before ({name} became {value!r})."
        )


TOGETHER = Ways()
