"""The YAML that is read and written here: plain scalars as people mean them, and nothing without a bound.

PyYAML follows YAML 1.1, where ``1e-5`` is a string, ``no`` is false and ``010`` is eight. Here scalars follow the core
schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): only ``true`` and ``false`` are booleans, an exponent
makes a number, and a leading zero does not. Tags are refused, depth and size are limited, aliases count as what they
stand for, and no text holds control characters, which terminals, shells and paths would take for something else.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

LARGEST = 1 << 18  # bytes of a document
_DEEPEST = 40  # lists and mappings within each other
_MOST_NODES = 5_000  # with what aliases stand for
_TOO_MANY = f"more than {_MOST_NODES:,} values, aliases counted as what they stand for"
_LONGEST_NUMBER = 100  # characters

_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)[eE][-+]?[0-9]+|[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
_TAG = "tag:yaml.org,2002:"
_UNWELCOME = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_ONLY_ESCAPED = re.compile(r"[\x85\u2028\u2029\ufeff]")  # an emitter would take them for ends of lines


class _Loader(yaml.SafeLoader):
    """Knows the scalars above and no others, and counts what it makes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.made = 0
        self.sizes: dict[Node, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _mistake(event, f"the tag {event.tag} is not read; write the value itself, or text in quotes")
        if self.depth == _DEEPEST:
            raise _mistake(event, f"more than {_DEEPEST} lists or mappings are within each other")
        if self.made == _MOST_NODES:
            raise _mistake(event, _TOO_MANY)
        self.depth, self.made = self.depth + 1, self.made + 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and node not in self.sizes:
            self._count(event, node)
        return node

    def _count(self, event: yaml.Event, node: Node) -> None:
        """Note how many nodes ``node`` stands for; one that an alias names before its end holds itself."""
        if isinstance(event, yaml.AliasEvent):
            raise _mistake(event, f"the alias *{event.anchor} stands within what it stands for")
        if isinstance(node, ScalarNode):
            _check_scalar(event, node)
            self.sizes[node] = 1
            return
        parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
        self.sizes[node] = 1 + sum(self.sizes[part] for part in parts)
        if self.sizes[node] > _MOST_NODES:
            raise _mistake(event, _TOO_MANY)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read back as a string; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    return dumper.represent_scalar(_TAG + "str", text, style='"' if _ONLY_ESCAPED.search(text) else None)


_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _SCALARS.items():
    _regexp = re.compile(rf"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(_TAG + _kind, _regexp, [*_first, *([""] if _kind == "null" else [])])
_Dumper.add_implicit_resolver(_TAG + "float", re.compile(rf"^(?:{_SCALARS['float'][0]})$"), [*_SCALARS["float"][1]])
_Dumper.add_representer(str, _represent_text)


def parse(text: str) -> tuple[Node | None, Any]:
    """The one document in ``text``: its nodes, which know their lines, and its value; both None without one.

    Raises:
        ValueError: it is no YAML, or beyond the bounds; the message says what and where.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(_words(error)) from None


def parse_value(text: str) -> Any:
    """The value of one override; see :func:`parse`."""
    return parse(text)[1]


def dump_yaml(values: dict[str, Any]) -> str:
    """``values`` as YAML text that :func:`parse` reads back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def control_character(text: str) -> str:
    """The first character of ``text`` that no text may hold, as in ``U+001B``; empty without one.

    These are the control characters but tabs and ends of lines, and halves of characters.
    """
    found = _UNWELCOME.search(text)
    return f"U+{ord(found[0]):04X}" if found else ""


def _check_scalar(event: yaml.Event, node: ScalarNode) -> None:
    if found := control_character(node.value):
        raise _mistake(event, f"the control character {found} cannot stand in a text")
    if node.tag in (_TAG + "int", _TAG + "float") and len(node.value) > _LONGEST_NUMBER:
        raise _mistake(event, f"a number of {len(node.value):,} characters; it may have {_LONGEST_NUMBER}")


def _mistake(event: Any, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=event.start_mark)


def _words(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    if isinstance(error, yaml.reader.ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return f"the character U+{code:04X} cannot stand in it (character {error.position + 1})"
    return " ".join(str(error).split())
