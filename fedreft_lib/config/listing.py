"""All parameters of a run as a text: name, default, range or choices, symbol in the paper, and the reason."""

from types import NoneType
from typing import Any, Literal, get_args, get_origin

from . import RunConfig
from .fields import GROUPS

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def listing() -> str:
    """Every parameter, below the heading of its group."""
    lines = []
    for group, heading in GROUPS.items():
        lines.append(f"\n{heading}")
        for name, field in RunConfig.model_fields.items():
            extra = field.json_schema_extra
            if extra["group"] == group:
                symbol = f"   [{extra['symbol']}]" if extra["symbol"] else ""
                lines += [
                    f"  {name} = {field.default!r}{symbol}",
                    f"      {range_of(name)}",
                    f"      {field.description}",
                ]
    return "\n".join(lines).strip("\n")


def range_of(name: str) -> str:
    """The values that a parameter may have: "a whole number >= 1 and <= 512", "one of 'auto', 'float32', 'bfloat16'".

    >>> range_of("rank")
    'a whole number >= 1 and <= 512'
    """
    field = RunConfig.model_fields[name]
    return _range(field.annotation, field.metadata)


def _range(kind: Any, metadata: Any = ()) -> str:
    if hasattr(kind, "__metadata__"):  # Annotated
        kind, metadata = get_args(kind)[0], (*kind.__metadata__, *metadata)
    bounds = _bounds(metadata)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        each = get_args(kind)[0]
        return "pairs, each a [client, round]" if get_origin(each) is tuple else f"a list, each {_range(each)}"
    if parts := get_args(kind):
        own = [_range(part, metadata if part in (int, float) else ()) for part in parts if part is not NoneType]
        return " or ".join(own + ["null"] * (NoneType in parts))
    noun = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    return f"{noun}{bounds}"


def _bounds(metadata: Any) -> str:
    found = []
    for each in metadata:
        for constraint in getattr(each, "metadata", [each]):  # pydantic keeps several bounds in one FieldInfo
            found += [f"{sign} {getattr(constraint, key)}" for key, sign in BOUNDS.items() if hasattr(constraint, key)]
    return f" {' and '.join(found)}" if found else ""
