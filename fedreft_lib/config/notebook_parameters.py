"""The parameters of notebooks that are not fields of RunConfig, and their checks, which are as strict as RunConfig's.

Most are lists that a notebook loops over; each element is a value of one of RunConfig's fields. A whole batch is
checked before it starts (`batch.jobs`), and each notebook again in its kernel (`RunConfig.from_notebook`).
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import ConfigError
from .fields import Fields, as_tuple, unknown_name, wanted
from .parameter_files import shortened

STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class Own(NamedTuple):
    """The type of a parameter, and an example."""

    type: Any
    example: Any


def _field(name: str) -> Any:
    """The type and the bounds of a field of RunConfig."""
    field = Fields.model_fields[name]
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _many(each: Any, least: int = 1) -> Any:
    return Annotated[tuple[each, ...], BeforeValidator(as_tuple), Field(min_length=least)]


def _words(*fields: str) -> Any:
    """A text of words, one for each of these fields of RunConfig; the last ones may be left out."""
    kinds = [TypeAdapter(_field(name), config=STRICT) for name in fields]

    def checked(text: str) -> str:
        words = text.split()
        if not 0 < len(words) <= len(fields):
            raise ValueError(f"expected a text of up to {len(fields)} words: {', '.join(fields)}")
        for name, kind, word in zip(fields, kinds, words, strict=False):
            try:
                kind.validate_python(_value(word))
            except ValidationError as error:
                raise ValueError(f"{name}: {wanted(error.errors())}") from None
        return text

    return Annotated[str, AfterValidator(checked)]


def _value(word: str) -> int | float | str:
    if word.isdigit():
        return int(word)
    return float(word) if re.fullmatch(r"\d*\.\d+", word) else word


def method_of(words: str) -> dict[str, Any]:
    """RunConfig's fields in "fedreft mean 0.05" or "fedreft mean adaptive calibrated", see OF_A_METHOD.

    The last ones may be missing.
    """
    return dict(zip(OF_A_METHOD, map(_value, words.split()), strict=False))


def _changes(fields: dict[str, Any]) -> dict[str, Any]:
    for name in fields:
        if name not in Fields.model_fields:
            raise ValueError(unknown_name(name, Fields.model_fields))
    return fields


def _factor(line: list) -> list:
    """A factor of an ablation: its name, then its levels, each with some fields of RunConfig."""
    if len(line) < 2 or not isinstance(line[0], str) or not all(isinstance(level, dict) for level in line[1:]):
        raise ValueError("expected a name, then mappings of RunConfig's fields")
    for level in line[1:]:
        _changes(level)
    return line


COUNT = Annotated[int, Field(ge=1)]
CHANGES = Annotated[dict[str, Any], AfterValidator(_changes)]
OF_A_METHOD = ("method", "aggregation", "mixing", "adaptive_by")
METHODS = _words(*OF_A_METHOD)
OWN = {
    "output_dir": Own(str | Path, "../outputs/mine"),
    "seeds": Own(_many(_field("seed")), [0, 1, 2]),
    "setups": Own(_many(_field("setup")), ["distinct", "mixed"]),
    "methods": Own(_many(METHODS), ["local", "fedreft geometric_median adaptive"]),
    "contestants": Own(_many(_words("method", "intervention", "rank")), ["fedreft loreft", "fedit lora"]),
    "map_run": Own(CHANGES, {"layers": "28-29", "rounds": 20}),
    "map_agreements": Own(_many(_field("agreement")), [1.0, 0.7, 0.5]),
    "map_sizes": Own(_many(_field("train_size")), [16, 64]),
    "map_methods": Own(_many(METHODS), ["local", "fedavg", "fedreft mean 0.05"]),
    "map_seeds": Own(_many(_field("seed")), [0, 1, 2]),
    "map_clients": Own(_many(_field("clients"), 0), [4, 8]),
    "map_hostile": Own(_many(_field("hostile"), 0), [0, 2, 3]),
    "rules": Own(_many(_field("mixing") | Literal["fedavg"] | _field("aggregation"), 0), ["adaptive", "mean"]),
    "heads": Own(_many(_field("head"), 0), ["private"]),
    "fixed": Own(_many(_field("mixing")), [0.0, 0.3]),
    "attacks": Own(_many(_field("attack")), ["sign_flip"]),
    "hostile_counts": Own(_many(_field("hostile")), [0, 2]),
    "more_clients": Own(_many(_field("clients"), 0), [4, 8]),
    "slow_rounds": Own(_field("rounds"), 2),
    "alphas": Own(_many(_field("alpha")), [0.1, 1.0]),
    "lora_lr": Own(_field("lr"), 8e-3),
    "tried_lrs": Own(_many(_field("lr"), 0), [1e-3, 2e-3]),
    "glue_tasks": Own(_many(str), ["sst2", "mrpc"]),
    "per_task": Own(dict[str, CHANGES], {"mrpc": {"rounds": 3}}),
    "ablations": Own(_many(Annotated[list, AfterValidator(_factor)], 0), [["rank", {"rank": 1}, {"rank": 8}]]),
    "links": Own(_many(Annotated[float, Field(gt=0)]), [1, 10, 100]),
    "steps": Own(COUNT, 40),
    "new_tokens": Own(_field("max_new_tokens"), 24),
    "read_size": Own(COUNT, 8),
    "gsm8k_questions": Own(Annotated[int, Field(ge=0)], 100),
}
NOUNS = {list: "a list", dict: "a mapping", str: "a text", int: "a whole number", float: "a number"}


def check(values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, *, by_hand: bool = False) -> None:
    """Raises ConfigError for the first of a notebook's own parameters with a wrong type or value.

    A parameter that is not in OWN must be like its default, where that is known. by_hand: the error also says how to
    give lists and mappings on papermill's command line.
    """
    for name, value in values.items():
        if name not in OWN:
            if name in (defaults or {}) and not _alike(value, defaults[name]):
                raise ConfigError(f"{name} must be like its default {defaults[name]!r}, got {shortened(value)}")
            continue
        own = OWN[name]
        try:
            TypeAdapter(own.type, config=STRICT).validate_python(value)
        except ValidationError as error:
            asked = f"{name} must be {NOUNS[type(own.example)]} like {own.example!r}"
            finding = error.errors()[0]
            if finding["loc"] or not finding["type"].endswith("_type"):
                asked += f" ({wanted(error.errors())})"
            nested = by_hand and isinstance(own.example, list | dict)
            how = f"; papermill's command line takes it as -y '{name}: {json.dumps(own.example)}'" if nested else ""
            raise ConfigError(f"{asked}, got {shortened(value)}{how}") from None


def assignments(source: str) -> dict[str, Any]:
    """Names and values of a cell. Raises ValueError (or SyntaxError) for anything but plain `name = value` lines."""
    return dict(_assignment(statement) for statement in ast.parse(source).body)


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name, ast.literal_eval(statement.value)
    raise ValueError(f"line {statement.lineno} is not")


def named_in(history: Sequence[str]) -> set[str] | None:
    """The names that parameters cells set, out of all cells that a kernel has run; None where none of them is one.

    A notebook's own parameters cell sets `output_dir`, whatever else it has; its last run counts. papermill's cell
    after it begins with "# Parameters". A cell that sets `output_dir` and few of the names before is the reader's own:
    its names come on top, so that what it sets is taken or refused, and never ignored.
    """
    found = None
    for source in history:
        names, injected = _set_in(source), source.lstrip().startswith("# Parameters")
        if injected or "output_dir" in names:
            whole = not injected and (found is None or 2 * len(names & found) >= len(found))
            found = names if whole else (found or set()) | names
    return found


def _set_in(source: str) -> set[str]:
    """The names that a cell of a kernel's history sets; its magics are there as calls of `get_ipython()`."""
    names = set()
    try:
        parsed = ast.parse(source)
    except (SyntaxError, ValueError):
        return names
    for node in ast.walk(parsed):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Call(ast.Attribute(attr="run_cell_magic"), [_, _, ast.Constant(str(cell))]):
                names |= _set_in(cell)
    return names


def singular(names: Iterable[str], among: Iterable[str]) -> list[str]:
    """The names in `among` whose plural is in `names`: a notebook with `seeds` sets `seed` itself."""
    return [name for name in among if f"{name}s" in set(names)]


def first(values: Mapping[str, Sequence]) -> dict[str, Any]:
    """The fields `setup` and `head` of a notebook that has `setups` or `heads`: the first of them."""
    return {name: values[f"{name}s"][0] for name in ("setup", "head") if values.get(f"{name}s")}


def _alike(value: Any, default: Any) -> bool:
    """Whether a value has the type of its default. A whole number is also a number; a default of None allows all.

    In a list, each element must be like an element of the default; an empty default allows all elements.
    """
    if isinstance(value, list) and isinstance(default, list):
        return not default or all(any(_alike(each, like) for like in default) for each in value)
    return default is None or type(value) is type(default) or (type(value), type(default)) == (int, float)
