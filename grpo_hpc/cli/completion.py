"""What the shell offers when a word is begun. For bash: ``eval "$(_GRPO_HPC_COMPLETE=bash_source grpo-hpc)"``."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import click

_MARKS = ("run.yaml", "sweep.json")


def run_dirs(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Run directories and sweeps at most one folder below what is begun."""
    folder, begun = os.path.split(incomplete)
    patterns = [f"{glob.escape(begun)}{below}/{mark}" for mark in _MARKS for below in ("*", "*/*")]
    return sorted({str(path.parent) for pattern in patterns for path in Path(folder).glob(pattern)})


def folders_of_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Folders that hold runs, and sweeps, which do so, too."""
    found = run_dirs(ctx, param, incomplete)
    sweeps = [path for path in found if (Path(path) / _MARKS[1]).is_file()]
    parents = {str(Path(path).parent) for path in found}
    return sorted({*sweeps, *(parent for parent in parents if parent.startswith(incomplete) and parent != ".")})


def sweep_keys(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Keys of a run file, with their section."""
    from grpo_hpc.config.sections import SECTION_OF

    keys = sorted(f"{section}.{key}=" if section else f"{key}=" for key, section in SECTION_OF.items())
    return [key for key in keys if key.startswith(incomplete)]
