"""Adapters: what a client's state is made of, and how it acts on the frozen model.

    AtSites      interventions on the residual stream, at prompt positions after some blocks (ReFT)
    InLinears    low-rank additions inside linear modules, for every token (LoRA)

Both stack the tensors of all their places, so that a state is a handful of tensors whatever the depth of the model.
Neither changes the model: `attached` puts forward hooks on it for one pass and takes them away again.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .batches import Batch
from .branches import Branches, Kind
from .errors import ConfigError, did_you_mean
from .interventions import State
from .lora import ALIASES
from .owners import Lines
from .sites import Sites, intervene, unstacked

Blocks = Sequence[nn.Module] | Mapping[int, nn.Module]


@dataclass(frozen=True)
class AtSites:
    """Interventions of one kind and rank at sites of a residual stream of width d."""

    every_token = False  # of a text that is generated: the prompt alone is steered

    kind: Kind | Branches
    sites: Sites
    rank: int
    d: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.kind.shapes(len(self.sites), self.rank, self.d)

    @property
    def rotated(self) -> tuple[str, ...]:
        """Names of the tensors whose rows are kept orthonormal."""
        return self.kind.rotated

    @property
    def below(self) -> int:
        """The last block whose output, before it is steered, does not depend on the state."""
        return self.sites.layers[0]

    def start(self, init: str, generator: torch.Generator) -> State:
        return self.kind.init(len(self.sites), self.rank, self.d, start=init, generator=generator)

    @contextmanager
    def attached(self, blocks: Blocks, state: State, batch: Batch, dropout: float = 0.0) -> Iterator[None]:
        """Within this context the next forward pass over `batch` is steered; generation goes on unsteered."""
        positions = self.sites.positions(batch.prompt_lengths, batch.starts, tuple(batch.ids.shape))
        if batch.packed:
            positions = positions.among(batch.numbers, len(batch.index))
        rows = {"share": batch.share, "owners": batch.owners}
        with intervene(blocks, self.kind, state, self.sites, positions, **rows, dropout=dropout):
            yield


@dataclass(frozen=True)
class InLinears:
    """Additions of one kind and rank in the linear modules `dims` names: target -> (d_in, d_out).

    Names of the state's tensors begin with the target's: "q_proj.A".
    """

    every_token = True

    kind: Kind | Branches
    layers: tuple[int, ...]
    rank: int
    dims: dict[str, tuple[int, int]]
    architecture: str  # the model's type, for the names that it gives its modules

    @classmethod
    def of(
        cls, backbone: Backbone, kind: Kind | Branches, layers: tuple[int, ...], rank: int, targets: Sequence[str]
    ) -> "InLinears":
        """Looks the modules up in the backbone's first block. Raises ConfigError for one that is not there."""
        architecture = backbone.model.config.model_type
        dims = {}
        for target in targets:
            module = _linear(backbone.layers[layers[0]], target, architecture)
            dims[target] = (module.in_features, module.out_features)
        return cls(kind, layers, rank, dims, architecture)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            f"{target}.{name}": shape
            for target, dims in self.dims.items()
            for name, shape in self.kind.shapes(len(self.layers), self.rank, *dims).items()
        }

    @property
    def rotated(self) -> tuple[str, ...]:
        return ()

    @property
    def below(self) -> int:
        return self.layers[0] - 1

    def start(self, init: str, generator: torch.Generator) -> State:
        return {
            f"{target}.{name}": tensor
            for target, dims in self.dims.items()
            for name, tensor in self.kind.init(
                len(self.layers), self.rank, *dims, start=init, generator=generator
            ).items()
        }

    def modules(self, blocks: Blocks, target: str) -> list[nn.Linear]:
        """The target's modules in the adapter's layers."""
        return [_linear(blocks[layer], target, self.architecture) for layer in self.layers]

    @contextmanager
    def attached(self, blocks: Blocks, state: State, batch: Batch, dropout: float = 0.0) -> Iterator[None]:
        """Within this context every forward pass has the additions; dropout is on their input, as in peft."""
        of_row = batch.rows if batch.packed else slice(None)
        share = None if batch.share is None else batch.share[of_row][:, None, None]
        if share is not None and batch.packed:
            share = share.transpose(0, 1)  # (1, N, 1), as its tokens are
        of_each = self._of_each(batch, len(next(iter(state.values()))))
        handles = []
        try:
            for target in self.dims:
                own = {n.removeprefix(f"{target}."): t for n, t in state.items() if n.startswith(f"{target}.")}
                places = unstacked(own, 0 if batch.owners is None else 1)
                for module, phi in zip(self.modules(blocks, target), places, strict=True):
                    phi = phi if share is None else {**phi, "share": share}
                    handles.append(module.register_forward_hook(self._hook(phi, of_each, dropout)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, phi: State, of_each: Callable[[Tensor, State], Tensor], dropout: float):
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = nn.functional.dropout(args[0].to(torch.float32), dropout, training=dropout > 0)
            return output + of_each(x, phi).to(output.dtype)

        return hook

    def _of_each(self, batch: Batch, states: int) -> Callable[[Tensor, State], Tensor]:
        """(x, phi) -> what is added to x (B, T, d_in), or (1, N, d_in) of a packed batch, each row under its state."""
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
        """A product for each owner, of its tokens alone: the one that it has when it is alone."""
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
            phi = {**phi, "share": of_states(phi["share"].expand(-1, tokens, 1))}
        return lines.taken_back(self.kind.delta(of_states(x), phi).unflatten(1, (-1, tokens)))


Adapter = AtSites | InLinears


def _linear(block: nn.Module, target: str, architecture: str) -> nn.Linear:
    """The block's linear module that goes by the target's name."""
    wanted = ALIASES.get(architecture, {}).get(target, target)
    linears = {name.rsplit(".", 1)[-1]: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    if wanted not in linears:
        raise ConfigError(f"targets: this model has no linear module {target!r}{did_you_mean(target, linears)}")
    return linears[wanted]
