"""Hidden states below the first site: no client's state can change them, so they are computed once and stored.

    h_i (T_i, d) = output of block `adapter.below` for sequence i        one file: h_1, ..., h_n stacked

Every run on the same list of sequences reads the same file, in any round, for any client, method, lam or seed, in this
process or another. The file is memory-mapped, so all processes share the page cache that holds it. What does not fit on
the disk stays in this process's memory, up to MEMORY_LIMIT.

A file's name is a hash of everything that its bits depend on: weights and config of the blocks, dtype, device, threads,
versions, and the sequences. A sequence in another list has other last bits (padding, and the number of rows of a
product), so a file belongs to a list, not to a sequence. The order of a list does not matter: seeds that deal a client
the same questions in another order share a file.

The folder may be deleted at any time: mapped files stay readable (on Linux and macOS) until they are released.
"""

import contextlib
import functools
import hashlib
import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...config import RunConfig
from ...environment import BITS, environment, products
from ...errors import DamageWarning, FedReFTError
from ...files import hash_of, load_tensors, write_tensors
from .. import steered, tokens
from ..backbone import Backbone
from ..steered import SteeredModel
from ..tokens import Tokens
from ..ways import Ways
from . import frozen_block, packed_attention, textbook_attention
from .hidden_files import folder, limit, make_room

MEMORY_LIMIT = 2 * 2**30  # most bytes of a federation that stay in memory where the disk is full
OFTEN = 4  # rounds in which a client takes part, for its data to be kept
PART = 2**28  # bytes of a file: longer lists are computed and written in parts, so memory holds one part at a time


def keeps(model: SteeredModel, config: RunConfig) -> bool:
    """Whether a run stores hidden states. It does not where a client is drawn fewer than OFTEN times on average."""
    return model.can_start_in_the_middle and not _seldom(config)


def _seldom(config: RunConfig) -> bool:
    return config.sampled is not None and config.sampled * config.rounds < OFTEN * config.clients


def offer(model: SteeredModel, config: RunConfig, ways: Ways) -> str:
    """What can be stored for a model, as a sentence for the manifest. ways: those of its longest text."""
    if keeps(model, config) and not ways.whole:
        return "nothing is kept: options are read apart"
    if keeps(model, config):
        return f"the output of block {model.adapter.below} is computed once and kept"
    if _seldom(config):
        return "nothing is kept: most clients' data is read a few times, if at all"
    if model.adapter.below < 1:
        return "nothing to keep: the state acts from the first blocks on"
    return f"nothing to keep: a {model.backbone.model.config.model_type} model cannot start in the middle"


class HiddenCache:
    """The hidden states of one federation's sequences, below the first site of `model`."""

    def __init__(self, model: SteeredModel):
        self.model, self.folder, self.writes = model, folder(), True
        self.bytes = model.backbone.hidden_size * model.backbone.dtype.itemsize  # of a token
        # A federation that is larger than the limit would remove its own files.
        self.on_disk, self.in_memory = limit(self.folder), MEMORY_LIMIT  # bytes left

    def states(self, sequences: Sequence[Tokens]) -> list[Tensor] | None:
        """`hidden_below` of the sequences on the CPU, (T_i, d) each; None where there is no room, or where options are
        read apart (ways.py)."""
        if sequences and not self.model.ways(max(s.reach for s in sequences)).whole:
            return None
        size = sum(len(s.ids) for s in sequences) * self.bytes
        if size > max(self.on_disk if self.writes else 0, self.in_memory):
            return None
        found: dict[int, Tensor] = {}
        for part in self._parts(sequences):
            own = [sequences[i] for i in part]
            hidden = self._part(own)
            if self.in_memory < 0:  # the disk was full after all
                return None
            found |= zip(part, hidden.split([len(s.ids) for s in own]), strict=True)
        return [found[i] for i in range(len(sequences))]

    def _parts(self, sequences: Sequence[Tokens]) -> Iterator[list[int]]:
        """Indices of the sequences, sorted by content, in parts that fit into one file."""
        part, tokens = [], 0
        for i in sorted(range(len(sequences)), key=lambda i: repr(sequences[i])):
            if part and (tokens + len(sequences[i].ids)) * self.bytes > PART:
                yield part
                part, tokens = [], 0
            part.append(i)
            tokens += len(sequences[i].ids)
        if part:
            yield part

    def _part(self, sequences: list[Tokens]) -> Tensor:
        """Their hidden states, stacked (sum of T_i, d): mapped, or computed."""
        key = key_of(self.model, sequences)
        path = self.folder / f"{key}.safetensors"
        rows = sum(len(s.ids) for s in sequences)
        hidden = self._read(path, key, rows)
        if hidden is None:
            hidden = torch.cat(self.model.hidden_below(sequences)).cpu()
            if not self.writes or not self._written(path, key, hidden):
                self.in_memory -= hidden.nbytes
                return hidden
            kept = self._read(path, key, rows)
            hidden = hidden if kept is None else kept  # None: meanwhile another process needed the room
        self.on_disk -= hidden.nbytes
        return hidden

    def _read(self, path: Path, key: str, rows: int) -> Tensor | None:
        """The file's content, mapped. None where there is no file, and, with a warning, where it is damaged."""
        if not path.exists():
            return None
        try:
            tensors, notes = load_tensors(path)  # safetensors maps the file, and the hash covers the mapped content
            shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
            backbone = self.model.backbone
            if notes != {"key": key} or shapes != {"hidden": ((rows, backbone.hidden_size), backbone.dtype)}:
                raise FedReFTError(f"{path} holds something else than its name says")
        except FedReFTError as error:
            if path.exists():  # otherwise another process has just removed it
                warnings.warn(f"{error}: these hidden states are computed anew", DamageWarning, stacklevel=2)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used goes first
        return tensors["hidden"]

    def _written(self, path: Path, key: str, hidden: Tensor) -> bool:
        """Whether they could be written. After a failure it warns once and does not try again."""
        # A unique name: two processes may write the same states at once, and the last file stays.
        temporary = path.with_name(f"{key}-{uuid.uuid4().hex}.safetensors")
        try:
            if hidden.nbytes > self.on_disk:
                raise OSError(f"{limit(self.folder) / 2**30:.2f} GiB are the most that it may hold")
            self.folder.mkdir(parents=True, exist_ok=True)
            make_room(self.folder, hidden.nbytes)
            write_tensors({"hidden": hidden}, temporary, {"key": key})
            try:
                os.replace(temporary, path)  # not flushed: the hash reveals a file that a power cut has damaged
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            self.writes = False
            warnings.warn(
                f"{self.folder} takes no more hidden states ({error}): they stay in memory, and the next process "
                "computes them again",
                stacklevel=2,
            )
            return False
        return True


def key_of(model: SteeredModel, sequences: Sequence[Tokens]) -> str:
    """A hash of everything that the bits of `hidden_below` depend on; the sequences in the given order."""
    backbone, below = model.backbone, model.adapter.below
    config = backbone.model.config
    parts = (
        _sources(), products(backbone.device), backbone.dtype,
        *(environment(backbone.device)[name] for name in BITS),
        config.to_dict(), getattr(config, "_attn_implementation", None),
        below, _weights(backbone)[: below + 2], list(sequences),
    )  # fmt: skip
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


@functools.cache  # of the code that this process runs
def _sources() -> str:
    """A hash of the code that computes hidden states, including its batch size."""
    modules = (packed_attention, textbook_attention, frozen_block, tokens, steered)
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in modules)).hexdigest()


@functools.lru_cache(maxsize=1)
def _weights(backbone: Backbone) -> list[str]:
    """Hashes of the embeddings and of each block, over every value (the backbone's fingerprint only samples)."""
    modules: list[nn.Module] = [backbone.model.get_input_embeddings(), *backbone.layers]
    return [
        " ".join(hash_of({name: tensor.cpu().contiguous()}) for name, tensor in sorted(module.state_dict().items()))
        for module in modules
    ]
