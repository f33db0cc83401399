"""The linear modules that the `targets` of LoRA name: the rule of huggingface's peft, within a model's blocks.

A target is the end of a module's path within its block ("output.dense", or just "dense"). It names every module with
such a path, in every block that has one: all experts of a mixture that are modules, or the attention blocks of a hybrid
model. A module that several targets name is adapted once. Modules outside the blocks are never adapted. A target is
refused where it also names one tensor for all experts, which LoRA cannot adapt.

A state's tensors carry the target's name where it names one module of a block, else the modules' paths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, did_you_mean

# The same names of modules for every architecture.
ALIASES = {
    "bert": {"q_proj": "query", "k_proj": "key", "v_proj": "value"},
    "roberta": {"q_proj": "query", "k_proj": "key", "v_proj": "value"},
}


@dataclass(frozen=True)
class Place:
    """A linear module: its path within a block, the blocks that have it, and (d_in, d_out)."""

    path: str
    layers: tuple[int, ...]
    dims: tuple[int, int]

    def modules(self, blocks: Sequence[nn.Module] | Mapping[int, nn.Module]) -> list[nn.Module]:
        return [blocks[layer].get_submodule(self.path) for layer in self.layers]


def places(blocks: Mapping[int, nn.Module], targets: Sequence[str], architecture: str) -> dict[str, Place]:
    """The modules that `targets` name in these blocks, by their names in a state. architecture: the model's type.

    Raises ConfigError for a target that no linear module has, and for a module that two blocks share or that has
    several shapes.
    """
    found: dict[str, dict[int, nn.Module]] = {}  # path -> number of the block -> module
    for layer, block in blocks.items():
        for path, module in block.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                found.setdefault(path, {})[layer] = module
    named: dict[str, Place] = {}
    taken: set[str] = set()
    for target in targets:
        paths = ending(found, target, architecture)
        if not paths or _stacked(blocks, target, architecture):
            raise ConfigError(f"targets: {_missing(blocks, found, target, architecture)}")
        named |= {target if len(paths) == 1 else p: _place(p, found[p]) for p in paths if p not in taken}
        taken.update(paths)
    return named


def ending(paths: Mapping[str, object], target: str, architecture: str) -> list[str]:
    """The paths that a target names."""
    end = ALIASES.get(architecture, {}).get(target, target)
    return [path for path in paths if f".{path}".endswith(f".{end}")]


def dims_of(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out); GPT-2's Conv1D is a linear module whose weight is (d_in, d_out)."""
    return tuple(module.weight.shape) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def as_linear(module: nn.Module, weight: Tensor) -> Tensor:
    """`weight`, the module's or a tensor of that shape, as (d_out, d_in)."""
    return weight.mT if isinstance(module, Conv1D) else weight


def _place(path: str, modules: Mapping[int, nn.Module]) -> Place:
    if len(set(map(id, modules.values()))) < len(modules):
        raise ConfigError(f"targets: blocks of this model share one {path!r}, which no block can adapt for itself")
    dims = {layer: dims_of(module) for layer, module in modules.items()}
    if len(set(dims.values())) > 1:
        raise ConfigError(
            f"targets: {path!r} has the shapes {sorted(set(dims.values()))} in these blocks: choose layers with one"
        )
    return Place(path, tuple(modules), next(iter(dims.values())))


def _stacked(blocks: Mapping[int, nn.Module], target: str, architecture: str) -> list[str]:
    """Paths of tensors of that name that hold all experts of a mixture at once; gate_up_proj holds two modules."""
    several = [path for block in blocks.values() for path, tensor in block.named_parameters() if tensor.dim() > 2]
    fused = ["gate_up_proj"] if target in ("gate_proj", "up_proj") else []
    return [path for name in (target, *fused) for path in ending(dict.fromkeys(several), name, architecture)]


def _missing(blocks: Mapping[int, nn.Module], linears: Mapping[str, object], target: str, architecture: str) -> str:
    bare = {path: tensor for block in blocks.values() for path, tensor in block.named_parameters()}
    for path in _stacked(blocks, target, architecture) or ending(bare, target, architecture):
        return f"{path!r} is a tensor of shape {tuple(bare[path].shape)} and no linear module: lora cannot adapt it"
    known = dict.fromkeys([path.rpartition(".")[2] for path in linears] + list(linears))
    return f"this model has no linear module {target!r}{did_you_mean(target, known)}"
