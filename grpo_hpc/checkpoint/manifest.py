"""The list of everything in a folder with digests. It is written last, so its presence means that the rest is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.checkpoint.copies import Check
from grpo_hpc.errors import CheckpointError
from grpo_hpc.files import read_text

NAME = "manifest.json"
_LARGEST = 2**30  # bytes


@dataclass(frozen=True)
class Piece:
    """A part of a file with its digest (xxh3-128, hex)."""

    name: str
    file: str
    offset: int
    nbytes: int
    digest: str


def write(folder: Path, about: dict[str, Any], pieces: Iterable[Piece]) -> None:
    """Write the manifest of ``folder``, everything else of which must be on disk already.

    Args:
        about: what is said beside the files: what they were made from, in which layout.
    """
    files: dict[str, Any] = {}
    for piece in pieces:
        listed = files.setdefault(piece.file, {"size": (folder / piece.file).stat().st_size, "pieces": []})
        listed["pieces"].append([piece.name, piece.offset, piece.nbytes, piece.digest])
    part = folder / (NAME + ".part")
    with part.open("w") as out:
        json.dump({**about, "digest": "xxh3_128", "files": files}, out)
        out.flush()
        os.fsync(out.fileno())
    part.rename(folder / NAME)


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of ``folder``; None when it has none of ours.

    Raises:
        CheckpointError: it cannot be read, or a file is missing or of another size than it says.
    """
    try:
        manifest = json.loads(read_text(folder / NAME, _LARGEST))
        if not isinstance(manifest, dict) or "digest" not in manifest:
            return None
        for name, listed in manifest["files"].items():
            _check_file(folder, name, listed)
        return manifest
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / NAME} cannot be read: {error}") from error


def _check_file(folder: Path, name: str, listed: dict[str, Any]) -> None:
    """A file of its folder, of the size that is listed, with pieces that lie within it."""
    size, file = listed["size"], folder / name
    if ".." in Path(name).parts or Path(name).is_absolute() or "\0" in name:
        raise CheckpointError(f"{folder / NAME} lists {name!r}, which is no file of its own folder")
    for said, offset, nbytes, digest in listed["pieces"]:
        numbers = type(offset) is type(nbytes) is int and 0 <= offset <= offset + nbytes <= size
        if not (numbers and type(said) is type(digest) is str):
            raise ValueError(f"{name!r} has the piece {[said, offset, nbytes, digest]}")
    try:
        found = file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file} is missing, though {NAME} lists it") from error
    if found != size:
        what = "truncated" if found < size else "too long"
        raise CheckpointError(f"{file} is {what}: {found:,} bytes instead of {size:,}")


def checks(folder: Path, manifest: dict[str, Any] | None) -> list[Check]:
    """The pieces of a folder as checks, in the order of the files."""
    if manifest is None:
        return []
    return [
        Check(name, folder / file, offset, nbytes, digest)
        for file, listed in manifest["files"].items()
        for name, offset, nbytes, digest in listed["pieces"]
    ]
