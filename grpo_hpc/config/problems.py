"""Mistakes in a run file: collected, then shown together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_hpc.errors import ConfigError
from grpo_hpc.redaction import secret_paths


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        key: dotted key path, such as ``batch.micro_batch_size``; empty when the mistake belongs to no single key.
        text: what is wrong and what would be right; may have several lines.
    """

    key: str
    text: str


def raise_problems(problems: Sequence[Problem], source: str, places: dict[str, str]) -> None:
    """Raise one ConfigError that lists all ``problems``; do nothing when there are none.

    Args:
        source: name of the run file.
        places: where a key was given (``line 12`` or ``override``), for those keys that were.
    """
    if not problems:
        return
    unique = list(dict.fromkeys(problems))
    head = f"{source}: " + ("1 mistake" if len(unique) == 1 else f"{len(unique)} mistakes")
    raise ConfigError("\n".join([head, *(_entry(problem, places) for problem in unique)]))


def without_secrets(values: Mapping[str, Any], problems: Sequence[Problem], instead: str) -> list[Problem]:
    """``problems`` of a document with one for each secret in it, whose value no other problem may show then.

    Args:
        values: the document.
        instead: where a secret belongs.
    """
    secret = [Problem(path, f"holds a secret: {instead}") for path in secret_paths(dict(values))]
    keys = {problem.key for problem in secret}
    return [*secret, *(problem for problem in problems if problem.key not in keys)]


def _entry(problem: Problem, places: dict[str, str]) -> str:
    place = places.get(problem.key, "")
    label = problem.key + (f" ({place})" if place else "") + ": " if problem.key else ""
    lines = (label + problem.text).splitlines()
    return "\n".join(["  " + lines[0], *("    " + line for line in lines[1:])])


def shown(value: Any) -> str:
    """``value`` as a short text for a message."""
    as_in_yaml = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return as_in_yaml if len(as_in_yaml) <= 60 else as_in_yaml[:57] + "..."
