"""Segments of shared memory that killed servers leave behind, in ``/dev/shm``.

Their names are random, so they are noted while the servers of this run have them mapped; what is noted there and used
by nobody any more is removed, when the servers have ended and before others start. Nothing else is touched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from grpo_hpc.files import write_atomically
from grpo_hpc.runs.run_dir import RunDir

SUFFIX = ".shm"
_NOTED = re.compile(r"^/dev/shm/[^/\s]+$", re.MULTILINE)
_MAPPED = re.compile(r"\s(/dev/shm/[^/\s]+)$", re.MULTILINE)  # a removed one has "(deleted)" behind its name


def note_segments(file: Path, processes: Iterable[int]) -> None:
    """Add to ``file`` the segments that ``processes`` have mapped now."""
    known = _noted(file)
    if new := _mapped(processes) - known:
        write_atomically(file, "\n".join(sorted(known | new)) + "\n")


def segment_files(run_dir: RunDir, node: str) -> list[Path]:
    """Where the starts of a run have noted the segments of their servers on ``node``."""
    return sorted(run_dir.path.glob(f"attempt_*/{RunDir.api_key(Path()).parent}/{node}{SUFFIX}"))


def unused_segments(file: Path) -> list[Path]:
    """The segments in ``file`` that no process of this user has mapped any more."""
    used = _mapped(int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [path for path in map(Path, sorted(_noted(file) - used)) if path.is_file()]


def remove_segments(file: Path) -> None:
    """Remove the segments in ``file`` that no process of this user has mapped any more, and the file."""
    for segment in unused_segments(file):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            segment.unlink()
    file.unlink(missing_ok=True)


def _noted(file: Path) -> set[str]:
    return set(_NOTED.findall(file.read_text(errors="replace"))) if file.exists() else set()


def _mapped(processes: Iterable[int]) -> set[str]:
    found: set[str] = set()
    for process in processes:
        with suppress(OSError):  # it has ended, or it is somebody else's
            found |= set(_MAPPED.findall(Path(f"/proc/{process}/maps").read_text(errors="replace")))
    return found
