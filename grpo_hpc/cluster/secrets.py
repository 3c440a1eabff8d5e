"""Secrets reach the processes of a run in their environment: never on a command line, in a script or in a log."""

from __future__ import annotations

import re
from pathlib import Path

from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.redaction import keep_secret

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_secrets(path: Path) -> dict[str, str]:
    """The NAME=VALUE lines of a file; lines that begin with # are left out.

    Nothing in a value is special, but blanks around it do not belong to it. What is read is kept out of texts from then
    on (:func:`grpo_hpc.redaction.keep_secret`).

    Raises:
        EnvironmentProblem: the file is missing, or others can read it.
        ConfigError: a line is not NAME=VALUE; its text is not shown.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise EnvironmentProblem(f"the secrets file {path} cannot be read: {why}") from None
    if mode & 0o077:
        raise EnvironmentProblem(
            f"the secrets file {path} can be read by others (mode {mode & 0o777:04o})", f"Run: chmod 600 {path}"
        )
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()) or "\0" in value:
            raise ConfigError(f"{path}, line {number} is not NAME=VALUE")
        found[name.strip()] = keep_secret(value.strip())
    return found
