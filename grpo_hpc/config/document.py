"""Reading YAML: plain scalars as people mean them, no duplicate keys, and the line of every key.

PyYAML follows YAML 1.1, where ``1e-5`` is a string, ``no`` is false and ``010`` is eight. Here scalars follow the core
schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): only ``true`` and ``false`` are booleans, an exponent
makes a number, and a leading zero does not.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grpo_hpc.config.library import run_files
from grpo_hpc.config.problems import Problem
from grpo_hpc.errors import ConfigError

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


class _Loader(yaml.SafeLoader):
    """Knows the scalars above and no others."""


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read back as a string."""


_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    _regexp = re.compile(rf"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regexp, [*_first, *([""] if _tag == "null" else [])])
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^(?:{_SCALARS['float'][0]})$"), list(_SCALARS["float"][1])
)


@dataclass
class Document:
    """A parsed YAML file.

    Attributes:
        values: the mapping that the file holds.
        places: where each dotted key stands, such as ``{"batch.train_iters": "line 12"}``.
        problems: duplicate keys.
    """

    values: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_document(path: Path) -> Document:
    """Parse the run file at ``path``, or the one that comes with the package under that name.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML or not a mapping.
    """
    if not path.exists():
        path = run_files().get(str(path), path)
    if not path.exists():
        raise ConfigError(f"run file {path} does not exist", _others(path))
    return read_yaml(path, "run file", "name: my-run")


def read_yaml(path: Path, kind: str, example: str) -> Document:
    """Parse a YAML file.

    Args:
        kind: what the file is, for messages.
        example: a line of such a file.

    Raises:
        ConfigError: the file is unreadable, not YAML or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"the {kind} {path} cannot be read: {why}") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        values = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_yaml_mistake(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, as in '{example}'; got {type(values).__name__}")
    document = Document(values)
    if node is not None:
        _note_keys(node, "", document)
    return document


def parse_value(text: str) -> Any:
    """The value of one override, read as YAML.

    Raises:
        ValueError: ``text`` is not YAML; the message says why.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(_yaml_mistake(error)) from None


def dump_yaml(values: dict[str, Any]) -> str:
    """``values`` as YAML text that :func:`read_document` reads back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _note_keys(node: yaml.Node, prefix: str, document: Document) -> None:
    """Record the line of every key and list item under ``node``, and a problem for each key that is given twice."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            document.places[f"{prefix}{number}"] = f"line {item.start_mark.line + 1}"
            _note_keys(item, f"{prefix}{number}.", document)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        line = f"line {key_node.start_mark.line + 1}"
        if key in document.places:
            document.problems.append(Problem(key, f"is given again on {line}; keep one of the two"))
        else:
            document.places[key] = line
            _note_keys(value_node, f"{key}.", document)


def _yaml_mistake(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())


def _others(path: Path) -> str:
    """What may have been meant: the shipped run file of nearly that name, or those beside ``path``."""
    beside = {p.stem: p for p in sorted(path.parent.glob("*.yaml"))} if path.parent.is_dir() else {}
    near = difflib.get_close_matches(path.stem, [*beside, *run_files()], n=1)
    if near and near[0] not in beside:
        return f"Did you mean {near[0]}, which comes with grpo-hpc?"
    return f"Run files there: {', '.join(map(str, [*beside.values()][:6]))}" if beside else ""
