"""Secrets reach the processes of a run in their environment: never on a command line, in a script or in a log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from grpo_hpc.errors import ConfigError, EnvironmentProblem

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOOKS_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)


def read_secrets(path: Path) -> dict[str, str]:
    """The NAME=VALUE lines of a file; nothing in a value is special, and lines that begin with # are left out.

    Raises:
        EnvironmentProblem: the file is missing, or others can read it.
        ConfigError: a line is not NAME=VALUE; its text is not shown.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"the secrets file {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise EnvironmentProblem(
            f"the secrets file {path} can be read by others (mode {mode & 0o777:04o})", f"Run: chmod 600 {path}"
        )
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()):
            raise ConfigError(f"{path}, line {number} is not NAME=VALUE")
        found[name.strip()] = value
    return found


def without_secrets(variables: Mapping[str, str], secret: Iterable[str]) -> dict[str, str]:
    """``variables`` as they may be recorded: values of known and of likely secrets are left out."""
    known = set(secret)
    return {
        name: "(secret)" if name in known or _LOOKS_SECRET.search(name) else value
        for name, value in sorted(variables.items())
    }
