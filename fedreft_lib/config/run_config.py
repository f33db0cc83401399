"""The parameters of one run, checked: each by itself (`fields`), then together (`checks`)."""

import hashlib
import json
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError, model_validator

from ..data.families import FAMILIES
from ..errors import ConfigError
from . import checks, notebook_parameters
from .fields import Fields, unknown_name, wanted

if TYPE_CHECKING:
    from ..core.training import Recipe

# The groups of parameters that something depends on. Two configs that agree in these can share it.
DEPENDS_ON = {
    "data": ("model", "data", "tests"),  # the items of all clients, as the model reads them
    "training": ("model", "state", "data", "training"),  # local training from a given state
    "hooks": ("methods",),  # what a method makes of a client before, in and after its training
}


class RunConfig(Fields):
    """The parameters of one run. Any of them may be given, as in `RunConfig(mixing=0.3)`; the others have defaults.

    Raises ConfigError, before anything is loaded, for an unknown name (and suggests the nearest known one), a wrong
    type, NaN, a value out of range, or values that do not go together.
    """

    def __init__(self, **values: Any):
        values = {**_family_defaults(values), **values}
        values = {name: 0.0 if value == 0 and type(value) is float else value for name, value in values.items()}  # -0.0
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_sentence(error)) from None

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        checks.check(self)
        return self

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any], *, also: Iterable[str] = ()) -> "RunConfig":
        """The parameters cell as a RunConfig. Call it after that cell, with `globals()`.

        Every name that the parameters cell or papermill's sets must be a field or be named in `also`. So a misspelt
        papermill parameter is refused and not silently ignored, and what other cells have left is no parameter. `also`
        names the notebook's own parameters, like `seeds`, which are checked too. Where a notebook has `setups`, the
        first of them becomes `setup`; so it is with `heads`.

        Where the kernel's history has no such cell (`notebook_parameters.named_in`), every public plain value counts,
        but for constants (IN_CAPITALS) without a field's name.
        """
        also = set(also)
        if (named := notebook_parameters.named_in(namespace.get("In", ()))) is not None:
            namespace = {name: value for name, value in namespace.items() if name in named}
        plain = (str, int, float, list, tuple, dict, types.NoneType)
        kernel = {"In", "Out"}  # IPython's own
        values = {
            name: value
            for name, value in namespace.items()
            if (isinstance(value, plain) or name in cls.model_fields)  # a field of another type is refused below
            and not (name.startswith("_") or name in kernel or name in also)
            and not (name.isupper() and name.lower() not in cls.model_fields)
        }
        unknown = [name for name in values if name not in cls.model_fields]
        if unknown:
            raise ConfigError(unknown_name(unknown[0], [*cls.model_fields, *also]))
        own = {name: namespace[name] for name in namespace if name in also}
        notebook_parameters.check(own, by_hand=True)
        for name in notebook_parameters.singular(also, list(values)):
            value, several = values.pop(name), own.get(f"{name}s", ())
            if isinstance(value, str | int | float) and value not in several:  # one of them is left from a loop
                raise ConfigError(f"this notebook has no parameter {name!r}: it goes through {name}s, got {several!r}")
        return cls(**values, **notebook_parameters.first(own))

    def but(self, **changes: Any) -> "RunConfig":
        """This config with some fields changed, checked again."""
        return RunConfig(**{**self.model_dump(), **changes})

    @property
    def run_id(self) -> str:
        """A readable name that ends in a hash of all fields (32 bits)."""
        method = f"{self.method}-{self.aggregation}-{self.mixing}" if self.method == "fedreft" else self.method
        digest = hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.setup}-{method}-seed{self.seed}-{digest}"

    @property
    def mixing_name(self) -> str:
        """How lam is set: "none", "fixed 0.3", "scheduled 0.0->0.5", "adaptive" or "adaptive calibrated"."""
        if self.method not in ("fedreft", "placebo"):
            return "none"
        if self.mixing == "scheduled":
            return "scheduled {}->{}".format(*self.mixing_range)
        if self.mixing == "adaptive":
            return "adaptive" if self.adaptive_by == "loss" else f"adaptive {self.adaptive_by}"
        return f"fixed {self.mixing}"

    @property
    def recipe(self) -> "Recipe":
        """The parameters of a client's training, as `core.training` takes them."""
        from ..core.training import Recipe  # loads torch

        return Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})

    def schedule_part(self, steps: int, t: int) -> tuple[int, int]:
        """How many steps of lr's schedule come before round t (from 1), and how many it has. steps: of each round.

        Raises ConfigError for a round after the last, where a schedule over the rounds has no learning rate.
        """
        if self.schedule_over == "round":
            return 0, steps
        rounds = max(self.rounds, 1)  # Fed-SB's start is a first step, in a run without rounds too
        if t > rounds:
            raise ConfigError(f'schedule_over="rounds" ends with round {rounds}, got round {t}: give more rounds')
        return (t - 1) * steps, rounds * steps

    @property
    def most_at_once(self) -> int:
        """The most clients that can take part in one round: those drawn, and those with a late update."""
        return min(self.clients, (self.sampled or self.clients) + len(self.late))

    def parameters_of(self, what: str) -> dict[str, Any]:
        """The parameters that `what`, a key of DEPENDS_ON, depends on."""
        groups = {name: field.json_schema_extra["group"] for name, field in RunConfig.model_fields.items()}
        return {name: getattr(self, name) for name, group in groups.items() if group in DEPENDS_ON[what]}


def _family_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that depend on the family of tasks."""
    family = (
        FAMILIES.get(values.get("benchmark", "commonsense")) if isinstance(values.get("benchmark", ""), str) else None
    )
    if family is None:
        return {}
    return {"tasks": family.default_tasks, "backbone": family.default_backbone, **family.defaults}


def _sentence(error: ValidationError) -> str:
    """pydantic's findings as one sentence about the first parameter."""
    finding = error.errors()[0]
    name = str(finding["loc"][0]) if finding["loc"] else ""
    if finding["type"] == "extra_forbidden":
        return unknown_name(name, RunConfig.model_fields)
    if finding["type"] == "value_error":
        return str(finding["ctx"]["error"])
    return f"{name}: {wanted(error.errors())}, got {finding['input']!r}"
