"""What the manifest of a training checkpoint lists, for everybody who asks whether something of it is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
GONE = (FileNotFoundError, NotADirectoryError)
"""What a missing part of a checkpoint is. Other refusals are of the machine, which may read it the next time."""
NONE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a manifest that is none may raise."""


def listed_files(checkpoint: Path) -> dict[str, Any]:
    """What is said of every file, by its path in the checkpoint; of older versions its size alone.

    Raises:
        OSError: it cannot be read.
        ValueError: it names a file that is not in the checkpoint; :data:`NONE`, when it is no manifest.
    """
    files: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())["files"]
    if outside := [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ValueError(f"the manifest names {outside[0]!r}, which is not in the checkpoint")
    return dict(files.items())


def what_is_missing(checkpoint: Path) -> str:
    """What is missing by names and sizes alone; empty when nothing is.

    Raises:
        OSError: something that may be there cannot be read.
    """
    try:
        for name, listed in listed_files(checkpoint).items():
            size = listed["size"] if isinstance(listed, dict) else listed
            if (found := (checkpoint / name).stat().st_size) != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
    except (*GONE, *NONE) as error:
        return f"{type(error).__name__}: {error}"
    return ""
