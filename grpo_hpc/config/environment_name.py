"""How a run file names its environment: ``my_tools.py``, or ``my_env.py:Maze``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

SUFFIX = ".py"


def file_and_name(environment: str) -> tuple[str, str]:
    """The file, and what is meant in it; no name means all functions of the file."""
    if environment.endswith(SUFFIX):
        return environment, ""
    file, _, name = environment.rpartition(":")
    return file, name


def is_environment(environment: str) -> bool:
    """Whether a text has the form of one."""
    file, name = file_and_name(environment)
    return Path(file).suffix == SUFFIX and (file == environment or name.isidentifier())


def with_absolute_file(environment: str, absolute: Callable[[str], str]) -> str:
    """``environment`` with the path of its file made ``absolute``."""
    file, name = file_and_name(environment)
    return f"{absolute(file)}:{name}" if name else absolute(file)
