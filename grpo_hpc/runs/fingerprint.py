"""The fingerprint of the environment that a run was started in."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import grpo_hpc


def fingerprint() -> dict[str, Any]:
    """What is needed to tell later which code and packages made a run; JSON-safe."""
    packages = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata["Name"]}
    return {
        "grpo_hpc": grpo_hpc.__version__,
        "git": _git(Path(grpo_hpc.__file__).resolve().parents[1]),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def _git(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the package runs from, and whether files differ from it; None outside a checkout."""
    if not (root / ".git").exists():
        return None
    commit = _output(["git", "-C", str(root), "rev-parse", "--verify", "HEAD"])
    changed = _output(["git", "-C", str(root), "status", "--porcelain"])
    return None if commit is None or changed is None else {"commit": commit, "dirty": bool(changed)}


def _output(command: list[str]) -> str | None:
    """What ``command`` prints; None when it fails or git is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
