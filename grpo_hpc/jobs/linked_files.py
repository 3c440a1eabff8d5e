"""Where links lead that lie in what a run reads: a container that does not see it finds nothing behind them.

A snapshot in a Hugging Face cache is such a folder: its files are links to ``../../blobs``. A container sees a folder
under the path that the run file names, which may lead there over links of its own; so where a link is looked for
inside, and where it leads outside, are two paths.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

Places = tuple[Path, Path]
"""A path inside and the path outside that is seen there."""


def links_of(paths: Iterable[str], seen: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What must be bound besides ``paths``, so that links in them lead to what they lead to outside.

    Where several links lead into one folder, that folder is bound, unless it lies directly below the root.

    Args:
        paths: absolute; files, or folders with all that is below them. Of a folder behind a link only the entries.
        seen: folders and files that are seen inside under their own path.

    Returns:
        pairs of the path inside and the path outside, a folder before what lies in it.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        _look_into(path, path, found)
    wanted = [places for places in found.items() if not any(places[0].is_relative_to(known) for known in seen)]
    shared = Counter(_folders(places) for places in wanted)
    bound = dict(places if shared[_folders(places)] == 1 else _folders(places) for places in wanted)
    return tuple((str(inside), str(_same(inside, outside))) for inside, outside in sorted(bound.items()))


def _look_into(inside: Path, outside: Path, found: dict[Path, Path], linked: bool = False) -> None:
    """Follow every link in a folder that is seen as ``inside``; what cannot be read is left to those who read it."""
    try:
        entries = list(os.scandir(outside)) if outside.is_dir() else []
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink():
            _follow(inside / entry.name, Path(entry.path), found)
        elif entry.is_dir() and not linked:
            _look_into(inside / entry.name, Path(entry.path), found)


def _follow(inside: Path, link: Path, found: dict[Path, Path]) -> None:
    """Note where a link leads, if it leads anywhere."""
    target = Path(os.path.normpath(inside.parent / link.readlink()))
    if target in found or target == Path("/") or not link.exists():
        return
    found[target] = link.resolve()
    _look_into(target, found[target], found, linked=True)


def _folders(places: Places) -> Places:
    """The folders of a file inside and outside; the same places where folders cannot stand for them."""
    inside, outside = places
    alone = outside.is_dir() or outside.name != inside.name or len(inside.parts) < 4
    return places if alone else (inside.parent, outside.parent)


def _same(inside: Path, outside: Path) -> Path:
    """``inside`` where that is the same place: its real name may be another one on another node."""
    return inside if inside.exists() and inside.samefile(outside) else outside
