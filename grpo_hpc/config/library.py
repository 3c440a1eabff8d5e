"""The run files and model configurations that come with the package (``configs/`` in a checkout)."""

from __future__ import annotations

import difflib
from pathlib import Path

from grpo_hpc.errors import ConfigError
from grpo_hpc.shipped import shipped


def run_files() -> dict[str, Path]:
    """Every shipped run file by its name, such as ``qwen3_30b_a3b``; recipes of algorithms come last."""
    folder = shipped("configs")
    return {file.stem: file for file in [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("recipes/*.yaml"))]}


def run_file(name: str) -> Path:
    """The shipped run file ``name``.

    Raises:
        ConfigError: there is none of that name.
    """
    found = run_files()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(found)}."
        raise ConfigError(f"no run file {name!r} comes with grpo-hpc", hint)
    return found[name]


def purpose(file: Path) -> str:
    """What a shipped run file is for: the comment on its first line."""
    with file.open(encoding="utf-8") as lines:
        return lines.readline().lstrip("# ").strip()


def model_config(name: str) -> Path | None:
    """The ``config.json`` that is shipped for the model ``name``, such as ``Qwen3-8B``."""
    folder = shipped("configs") / "models"
    return next((file for file in folder.glob("*.json") if file.stem == name), None)
