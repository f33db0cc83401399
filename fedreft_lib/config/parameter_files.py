"""A params file: a YAML mapping of names to plain values, read so that it can do nothing except name values.

    mixing: 0.3
    seeds: [0, 1]

YAML has much that parameters do not need: tags that call code, aliases that multiply, merge keys, dates, sets, 010 for
eight, 1:30 for ninety, yes for true. Each of these is refused in one sentence with its line. The only values are text,
decimal numbers, true, false, null, and lists and mappings of these.

PyYAML reads it, and not ruamel.yaml in YAML 1.2 mode, because ruamel.yaml still builds anchors, aliases and tags: the
same check of nodes would be needed, on a second YAML package.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import Reader, ReaderError

from ..errors import ConfigError

LARGEST = 64 * 1024  # bytes of a file
DEEPEST = 16  # levels of lists and mappings
LONGEST = 80  # characters of a name, and of a value in an error
# How a value may be written, for each type that YAML 1.1 gives it. Here 2e-3 is a number too, as in Python.
_FORMS = {
    "str": ".*",
    "null": "|~|(?i:null)",
    "bool": "(?i:true|false)",
    "int": "[-+]?(0|[1-9][0-9]{0,17})",  # at most 18 digits, which fit into 64 bits
    "float": r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?",
}


def read_parameters(file: Path) -> dict[str, Any]:
    """The names and values in a params file; {} for an empty one. Raises ConfigError, in one line, for any other."""
    try:
        return _parameters(_text(file))
    except ConfigError as error:
        raise ConfigError(f"{short(file)} {error}") from None


def short(file: Path) -> str:
    """The name of a params file in errors: params/PROFILE/NN_name.yaml."""
    return file.relative_to(file.parents[2]).as_posix()


def shortened(value: Any) -> str:
    """A value in errors, cut to LONGEST characters."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})") from None
    if len(content) > LARGEST:
        raise ConfigError(f"is larger than {LARGEST // 1024} KiB, too large for a list of parameters")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"is not UTF-8 text (line {line}): save it as UTF-8") from None


def _parameters(text: str) -> dict[str, Any]:
    try:
        return yaml.load(text, Loader=_Loader) or {}
    except ConfigError:
        raise
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(f"holds the control character {chr(error.character)!r} (line {line}): take it out") from None
    except yaml.MarkedYAMLError as error:
        text = f"{error.context or ''} {error.problem} (line {error.problem_mark.line + 1})"
        raise ConfigError(f"is not valid YAML: {' '.join(text.split())}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\UFFFFFFFF" in quotes is no character
        raise ConfigError(f"is not valid YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader for plain values only: it refuses an alias, anchor or tag before it makes a node of it."""

    def __init__(self, text: str):
        super().__init__(text)
        self.depth, self.names = 0, set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        where, is_scalar = f"(line {event.start_mark.line + 1})", isinstance(event, yaml.ScalarEvent)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ConfigError(f"has an anchor or an alias {where}: write the value itself in each place")
        if event.tag is not None:
            raise ConfigError(f"has the tag {shortened(event.tag)} {where}: leave tags out, values are plain")
        if self.depth == DEEPEST:
            raise ConfigError(f"nests lists or mappings more than {DEEPEST} deep {where}")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        kind, given = node.tag.rpartition(":")[2], shortened(node.value) if is_scalar else "a list or mapping"
        if parent is None and kind not in ("map", "null"):
            raise ConfigError(f"must be lines of `name: value` {where}")
        if isinstance(parent, yaml.MappingNode) and index is None:
            if kind == "merge":
                raise ConfigError(f"has the merge key << {where}: write the values themselves")
            if kind != "str" or not node.value.isprintable() or len(node.value) > LONGEST:
                raise ConfigError(f"must be lines of `name: value`, and {given} is no name {where}")
            if (parent, node.value) in self.names:
                raise ConfigError(f"gives {node.value} twice {where}: keep one of them")
            self.names.add((parent, node.value))
        elif is_scalar:
            _check_value(kind, node.value, where)
        return node


_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _check_value(kind: str, text: str, where: str) -> None:
    if bad := Reader.NON_PRINTABLE.search(text):  # such as half of a surrogate pair
        raise ConfigError(f"holds the control character {bad[0]!r} as an escape {where}: take it out")
    if not re.fullmatch(_FORMS.get(kind, "(?!)"), text, re.DOTALL) or (kind == "float" and math.isinf(float(text))):
        wanted = "a decimal and finite number, a whole one of up to 18 digits, true, false, null, or a text in quotes"
        raise ConfigError(f"has the value {shortened(text)} {where}: write {wanted}")
