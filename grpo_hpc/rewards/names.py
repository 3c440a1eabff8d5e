"""How a run file names its rewards: ``exact_number``, ``own.py:function``, ``environment``, or ``column=`` before it.

A name before the equals sign is the reward's column; so one function or model can serve several columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

ENVIRONMENT = "environment"
"""The name of what the environment gave in an episode, in sum. It is no function."""

_ALIASED = re.compile(r"([A-Za-z_]\w*)=(.+)", re.DOTALL)


def column_of(name: str) -> str:
    """The reward's column: what is before the equals sign, else the function's name."""
    found = _ALIASED.fullmatch(name)
    return found[1] if found else name.rpartition(":")[2]


def target_of(name: str) -> str:
    """A registered name or ``path/to/file.py:function``."""
    found = _ALIASED.fullmatch(name)
    return found[2] if found else name


def file_of(name: str) -> str:
    """The Python file of a reward; empty for a registered one."""
    return target_of(name).rpartition(":")[0]


def with_file(name: str, absolute: Callable[[str], str]) -> str:
    """``name`` with the path of its file made ``absolute``; registered names are left alone."""
    file = file_of(name)
    if not file:
        return name
    alias = name[: len(name) - len(target_of(name))]
    return f"{alias}{absolute(file)}:{target_of(name).rpartition(':')[2]}"


def is_path(parameter: str, value: Any) -> bool:
    """Whether a parameter of a reward is a path: its name says so."""
    return isinstance(value, str) and (parameter == "path" or parameter.endswith(("_path", "_file")))


def with_paths(given: Mapping[str, Any], absolute: Callable[[str], str]) -> dict[str, Any]:
    """Parameters with every path made ``absolute``."""
    return {name: absolute(value) if is_path(name, value) else value for name, value in given.items()}
