"""Reading a YAML file that people wrote: its values, the line of every key, and no key twice."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, SequenceNode

from grpo_hpc.config.library import run_files
from grpo_hpc.config.plain_yaml import LARGEST, parse
from grpo_hpc.config.problems import Problem
from grpo_hpc.errors import ConfigError
from grpo_hpc.files import read_text


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
        text = read_text(path, LARGEST)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"the {kind} {path} cannot be read: {why}") from None
    try:
        node, values = parse(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    values = {} if node is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, as in '{example}'; got {type(values).__name__}")
    document = Document(values)
    if node is not None:
        _note_keys(node, "", document)
    return document


def _note_keys(node: Node, prefix: str, document: Document) -> None:
    """Record the line of every key and list item under ``node``, and a problem for each key that is given twice."""
    if isinstance(node, SequenceNode):
        for number, item in enumerate(node.value):
            document.places[f"{prefix}{number}"] = f"line {item.start_mark.line + 1}"
            _note_keys(item, f"{prefix}{number}.", document)
    if not isinstance(node, MappingNode):
        return
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        line = f"line {key_node.start_mark.line + 1}"
        if key in document.places:
            document.problems.append(Problem(key, f"is given again on {line}; keep one of the two"))
        else:
            document.places[key] = line
            _note_keys(value_node, f"{key}.", document)


def _others(path: Path) -> str:
    """What may have been meant: the shipped run file of nearly that name, or those beside ``path``."""
    beside = {p.stem: p for p in sorted(path.parent.glob("*.yaml"))} if path.parent.is_dir() else {}
    near = difflib.get_close_matches(path.stem, [*beside, *run_files()], n=1)
    if near and near[0] not in beside:
        return f"Did you mean {near[0]}, which comes with grpo-hpc?"
    return f"Run files there: {', '.join(map(str, [*beside.values()][:6]))}" if beside else ""
