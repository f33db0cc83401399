"""A params file: a flat YAML mapping of names to plain values, read so that no file does more than name values.

    mixing: 0.3
    seeds: [0, 1]

YAML can do much that parameters do not need: tags that call code, aliases that multiply, merge keys, dates, sets, 010
for eight and 1:30 for ninety. All of that is refused, each with a sentence, before anything is built from it; the only
values that are ever made are text, decimal numbers, booleans, null, and lists and mappings of these.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import Reader

from ..errors import ConfigError

LARGEST = 64 * 1024  # bytes of a file
DEEPEST = 16  # levels of lists and mappings
LONGEST = 80  # characters of a name, and of a value in an error
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")  # of 18 digits, which every machine integer holds
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def read_parameters(file: Path) -> dict[str, Any]:
    """The names and values in a params file; {} where it is empty. Raises ConfigError, of one line, for all else."""
    try:
        return _parameters(_text(file))
    except ConfigError as error:
        raise ConfigError(f"{short(file)} {error}") from None


def short(file: Path) -> str:
    """params/PROFILE/NN_name.yaml, as errors name it."""
    return file.relative_to(file.parents[2]).as_posix()


def shortened(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})") from None
    if len(content) > LARGEST:
        raise ConfigError(f"is larger than {LARGEST // 1024} KiB, which no list of parameters needs")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"is not UTF-8 text (line {line}): save it as UTF-8") from None
    if bad := Reader.NON_PRINTABLE.search(text):
        line = text[: bad.start()].count("\n") + 1
        raise ConfigError(f"holds the control character {bad[0]!r} (line {line}): take it out")
    return text


def _parameters(text: str) -> dict[str, Any]:
    try:
        node = yaml.compose(text, Loader=_Composer)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ConfigError(f"is not valid YAML: {_one_line(error.context or '', error.problem)}{line}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\UFFFFFFFF" in quotes is no character
        raise ConfigError(f"is not valid YAML: {_one_line(error)}") from None
    if node is None or node.tag.endswith(":null"):
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"must be lines of `name: value` (line {_line(node)})")
    return {name: _value(value, name) for name, value in _pairs(node)}


class _Composer(yaml.SafeLoader):
    """YAML 1.1, in which 2e-3 is a text, but for that: here it is a number, as in Python.

    What is refused for its form is refused at its first event, so that an alias is never followed.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        where = f"(line {event.start_mark.line + 1})"
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ConfigError(f"has an anchor or an alias {where}: write the value itself in each place")
        if event.tag is not None:
            raise ConfigError(f"has the tag {shortened(event.tag)} {where}: leave tags out, values are plain")
        if self.depth == DEEPEST:
            raise ConfigError(f"nests lists or mappings more than {DEEPEST} deep {where}")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_PYTHON_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Composer.add_implicit_resolver("tag:yaml.org,2002:float", _PYTHON_FLOAT, list("-+0123456789"))


def _one_line(*parts: object) -> str:
    return " ".join(" ".join(map(str, parts)).split())


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _pairs(node: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
    """Names and values of a mapping, each name a text and given once."""
    names = set()
    for key, _ in node.value:
        if key.tag.endswith(":merge"):
            raise ConfigError(f"has the merge key << (line {_line(key)}): write the values themselves")
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"must be lines of `name: value`, and a list or mapping is no name (line {_line(key)})")
        if not key.tag.endswith(":str") or not key.value.isprintable() or len(key.value) > LONGEST:
            given = shortened(key.value)
            raise ConfigError(f"must be lines of `name: value`, and {given} is no name (line {_line(key)})")
        if key.value in names:
            raise ConfigError(f"gives {key.value} twice (line {_line(key)}): keep one of them")
        names.add(key.value)
    return [(key.value, value) for key, value in node.value]


def _value(node: yaml.Node, name: str) -> Any:
    """The plain value that a node stands for; `name` is the parameter that it belongs to."""
    if isinstance(node, yaml.MappingNode):
        return {inner: _value(value, name) for inner, value in _pairs(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, name) for each in node.value]
    text, wanted = node.value, "a number, text, boolean, null, list or mapping"
    match node.tag.rpartition(":")[2]:
        case "str":
            return _written(text, _line(node))
        case "null":
            return None
        case "bool":
            return text.lower() in ("yes", "true", "on")
        case "int":
            if _INTEGER.fullmatch(text):
                return int(text)
            wanted = "a decimal number of up to 18 digits"
        case "float":
            if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
                return float(text)
            wanted = "a decimal and finite number"
    raise ConfigError(f"must give {name} {wanted}, got {shortened(text)} (line {_line(node)}); a text goes in quotes")


def _written(text: str, line: int) -> str:
    """An escape in quotes must not bring in what the file itself may not hold, like half a character."""
    if bad := Reader.NON_PRINTABLE.search(text):
        raise ConfigError(f"holds the control character {bad[0]!r} as an escape (line {line}): take it out")
    return text
