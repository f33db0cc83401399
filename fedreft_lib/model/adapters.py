"""Adapters: the tensors of a client's state, and how they act on the frozen model.

    AtSites      interventions on the residual stream, at prompt positions after some blocks (ReFT)
    InLinears    low-rank additions inside linear modules, for every token (LoRA)

Both stack the tensors of all their places, so a state has few tensors even in a deep model. Neither changes the model:
`attached` adds forward hooks for one pass and removes them afterwards.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.sites import Positions, Sites, edited, unstacked
from ..core.state import State
from ..errors import FedReFTError
from .backbone import Backbone
from .fast.owners import Lines, as_columns, edit_by_owner
from .fast.recast import cast_again
from .linears import Place, places
from .tokens import Batch

Blocks = Sequence[nn.Module] | Mapping[int, nn.Module]


class Kind(Protocol):
    """A kind of state: an intervention of the ReFT family, LoRA, or several branches of one."""

    @property
    def rotated(self) -> tuple[str, ...]:
        """The tensors whose rows stay orthonormal."""

    def shapes(self, places: int, rank: int, *dims: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors, stacked over the places. dims: d, or d_in and d_out."""

    def init(self, places: int, rank: int, *dims: int, start: str, generator: torch.Generator) -> State:
        """A new state."""

    def edit(self, h: Tensor, phi: State) -> Tensor:
        """At sites: a hidden state after the intervention."""

    def delta(self, x: Tensor, phi: State) -> Tensor:
        """In linear modules: the addition to the output."""


@dataclass(frozen=True)
class AtSites:
    """Interventions of one kind and rank at sites of a residual stream of width d."""

    every_token = False  # in generation it steers only the prompt

    kind: Kind
    sites: Sites
    rank: int
    d: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.kind.shapes(len(self.sites), self.rank, self.d)

    @property
    def rotated(self) -> tuple[str, ...]:
        """Names of the tensors whose rows stay orthonormal."""
        return self.kind.rotated

    @property
    def adapted(self) -> list[str]:
        """The adapted part of a block, for the manifest."""
        return ["block_output"]

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """The layer of each place of each tensor, by the tensor's name."""
        return dict.fromkeys(self.shapes, self.sites.layers * len(self.sites.groups))

    @property
    def below(self) -> int:
        """The last block whose output, before the intervention, does not depend on the state."""
        return self.sites.layers[0]

    def start(self, init: str, generator: torch.Generator) -> State:
        return self.kind.init(len(self.sites), self.rank, self.d, start=init, generator=generator)

    @contextmanager
    def attached(self, blocks: Blocks, state: State, batch: Batch, dropout: float = 0.0) -> Iterator[None]:
        """In this context `state` steers the next forward pass over `batch`, and no later pass of a generation."""
        positions = self.sites.positions(batch.prompt_lengths, batch.starts, tuple(batch.ids.shape))
        if batch.packed:  # the same positions, as indices into the one row of all tokens
            places = {group: batch.numbers[index] for group, index in positions.indices.items()}
            positions = Positions((1, len(batch.index)), places, positions.rows)
        edit = edit_by_owner(self.kind, state, self.sites, positions, share=batch.share, owners=batch.owners)
        with edited(blocks, *edit, dropout):
            yield


@dataclass(frozen=True)
class InLinears:
    """Additions of one kind and rank in linear modules. A state's tensors carry the module's name, as in "q_proj.A".

    The tensors of a name are stacked over the blocks that have its module.
    """

    every_token = True

    kind: Kind
    layers: tuple[int, ...]
    rank: int
    linears: dict[str, Place]
    d: int  # width of the residual stream

    @classmethod
    def of(
        cls, backbone: Backbone, kind: Kind, layers: tuple[int, ...], rank: int, targets: Sequence[str]
    ) -> "InLinears":
        """Finds the modules in the backbone's blocks, see `linears`. Raises ConfigError for an unknown target."""
        blocks = {layer: backbone.layers[layer] for layer in layers}
        return cls(kind, layers, rank, places(blocks, targets, backbone.model.config.model_type), backbone.hidden_size)

    @property
    def in_attention(self) -> bool:
        """Whether all its modules are parts of the attention, where that is called as in LLaMA."""
        return all(place.path.startswith("self_attn.") for place in self.linears.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            f"{linear}.{name}": shape
            for linear, place in self.linears.items()
            for name, shape in self.kind.shapes(len(place.layers), self.rank, *place.dims).items()
        }

    @property
    def adapted(self) -> list[str]:
        """The modules' paths within a block, for the manifest; with block numbers if not all of `layers` have one."""
        return [
            p.path if p.layers == self.layers else f"{p.path} in blocks {', '.join(map(str, p.layers))}"
            for p in self.linears.values()
        ]

    @property
    def rotated(self) -> tuple[str, ...]:
        return ()

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """As of `AtSites`. Not all of `layers` need have a module."""
        return {name: self.linears[name.rpartition(".")[0]].layers for name in self.shapes}

    @property
    def below(self) -> int:
        return self.layers[0] - 1

    def start(self, init: str, generator: torch.Generator) -> State:
        return {
            f"{linear}.{name}": tensor
            for linear, place in self.linears.items()
            for name, tensor in self.kind.init(
                len(place.layers), self.rank, *place.dims, start=init, generator=generator
            ).items()
        }

    def of_linear(self, state: State, linear: str) -> State:
        """The tensors of one module name, with the kind's own names."""
        return {name: state[f"{linear}.{name}"] for name in self.kind.shapes(1, self.rank, *self.linears[linear].dims)}

    @contextmanager
    def attached(self, blocks: Blocks, state: State, batch: Batch, dropout: float = 0.0) -> Iterator[None]:
        """In this context every forward pass has the additions. Dropout acts on their input, as in peft.

        Raises FedReFTError where the model does not use a module in the usual way: by calling it, on rows of tokens.
        """
        of_row = batch.rows if batch.packed else slice(None)
        share = None if batch.share is None else as_columns(batch.share)[of_row][:, None]
        if share is not None and batch.packed:
            share = share.transpose(0, 1)  # (1, N, n), as its tokens are
        of_each = self._of_each(batch, len(next(iter(state.values()))))
        rows = None
        if share is not None or batch.owners is not None:
            rows = (1, len(batch.index)) if batch.packed else tuple(batch.ids.shape)
        called, handles = set(), []
        try:
            for linear, place in self.linears.items():
                phis = unstacked(self.of_linear(state, linear), 0 if batch.owners is None else 1)
                for module, phi in zip(place.modules(blocks), phis, strict=True):
                    phi = phi if share is None else {**phi, "share": share}
                    hook = self._hook(place.path, phi, of_each, dropout, rows, called)
                    handles.append(module.register_forward_hook(hook))
            yield
            for place in self.linears.values():
                if place.path not in called and not any(part.isdigit() for part in place.path.split(".")):
                    raise FedReFTError(f"targets: this model never calls {place.path!r}, so nothing can be added to it")
        finally:
            for handle in handles:
                handle.remove()

    def _hook(
        self,
        path: str,
        phi: State,
        of_each: Callable[[Tensor, State], Tensor],
        dropout: float,
        rows: tuple[int, int] | None,
        called: set[str],
    ):
        """rows: the (B, T) of a batch's tokens, where the row of a token matters."""

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            called.add(path)
            if not isinstance(output, Tensor):
                raise FedReFTError(f"targets: {path!r} hands on several tensors, so nothing can be added to its output")
            x = args[0].to(torch.float32)
            if rows and x.dim() != 3:
                if x.shape[:-1].numel() != rows[0] * rows[1]:  # an expert of a mixture reads some tokens of all rows
                    raise FedReFTError(
                        f"targets: {path!r} reads tokens without their rows, so clients cannot share a pass and no row "
                        'can have a share of its own: use engine="one_by_one", and other targets where rows have shares'
                    )
                x = x.reshape(*rows, -1)  # from (B T, d_in), or with an extra dimension of size 1
            with cast_again(args[0], x):
                x = nn.functional.dropout(x, dropout, training=dropout > 0)
                return output + of_each(x, phi).to(output.dtype).reshape(output.shape)

        return hook

    def _of_each(self, batch: Batch, states: int) -> Callable[[Tensor, State], Tensor]:
        """(x, phi) -> the addition for x (B, T, d_in), or (1, N, d_in) of a packed batch, each row with its state."""
        if batch.owners is None:
            return self.kind.delta
        if not batch.packed:
            return functools.partial(self._lined_up, Lines(batch.owners, states))
        owners = batch.owners[batch.rows]
        if bool((owners.diff() < 0).any()):
            raise ValueError("owners of a packed batch are to be given when it is made: their tokens stand together")
        sizes = owners.bincount(minlength=states).tolist()
        return functools.partial(self._split, sizes)

    def _split(self, sizes: list[int], x: Tensor, phi: State) -> Tensor:
        """One product for each owner, of its tokens only: the same product as in a batch of its own."""
        parts = {name: tensor.unbind() for name, tensor in phi.items() if name != "share"}
        if "share" in phi:
            parts["share"] = phi["share"].split(sizes, 1)
        added = [
            self.kind.delta(own, {name: part[k] for name, part in parts.items()})
            for k, own in enumerate(x.split(sizes, 1))
        ]
        return torch.cat(added, 1)

    def _lined_up(self, lines: Lines, x: Tensor, phi: State) -> Tensor:
        tokens = x.shape[1]

        def of_states(rows: Tensor) -> Tensor:  # (B, T, ...) -> (K, m T, ...)
            return lines.lined_up(rows).flatten(1, 2)

        if "share" in phi:
            phi = {**phi, "share": of_states(phi["share"].expand(-1, tokens, -1))}
        return lines.taken_back(self.kind.delta(of_states(x), phi).unflatten(1, (-1, tokens)))


Adapter = AtSites | InLinears
