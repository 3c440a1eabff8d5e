"""Every completion that was trained on, for people who want to read them: one compressed file per optimizer step.

``completions/step_00000012.jsonl.gz`` has what step 12 was the first to use, one JSON object per line.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from gzip import GzipFile
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.files import open_regular, replacing
from grpo_hpc.observe.jsonl import to_line

_NAME = re.compile(r"step_(\d{8,})\.jsonl\.gz")
_LONGEST_ROW = 64 << 20  # characters


def member(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """``rows`` as JSON lines in one gzip member: any number of them behind each other are a gzip file (RFC 1952).

    Equal rows give equal bytes. NaN and infinities become null.
    """
    return gzip.compress(b"".join(map(to_line, rows)), compresslevel=1, mtime=0)


def first_rows(members: Iterable[bytes], count: int) -> list[dict[str, Any]]:
    """The first rows of what :func:`member` gave, without unpacking the others."""
    lines = (line for part in members for line in GzipFile(fileobj=BytesIO(part)))
    return [json.loads(line) for line in islice(lines, count)]


class CompletionLog:
    """Writes the files. One process does; others may have compressed a part (:func:`member`).

    Args:
        folder: made when it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def write(self, step: int, members: Iterable[bytes]) -> None:
        """Write what the optimizer ``step`` was the first to use; no reader sees half a file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(_file(self._folder, step)) as file:
            file.writelines(members)

    def rewind(self, step: int) -> None:
        """Forget completions that were first used after ``step``, and what a killed writer left behind."""
        for half_written in self._folder.glob(".step_*"):
            half_written.unlink()
        for later in steps_with_completions(self._folder):
            if later > step:
                _file(self._folder, later).unlink()


def steps_with_completions(folder: str | Path) -> list[int]:
    """The optimizer steps that have a file in ``folder``, in order; none where the folder is not there."""
    try:
        names = [
            path.name for path in Path(folder).iterdir()
        ]  # a glob takes a folder that may not be read for an empty one
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def read_completions(folder: str | Path, step: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of one ``step``, or those of all steps in order, each with the ``step`` that was the first to use it.

    Raises:
        EnvironmentProblem: a file is missing or damaged; whoever reads step by step may pass it over.
    """
    for wanted in steps_with_completions(folder) if step is None else [step]:
        path = _file(Path(folder), wanted)
        try:
            with open_regular(path) as packed, gzip.open(packed, "rt", encoding="utf-8") as file:
                for row in iter(partial(file.readline, _LONGEST_ROW), ""):  # what is cut is no JSON
                    yield {"step": wanted, **json.loads(row)}
        except FileNotFoundError:
            raise EnvironmentProblem(f"{path} does not exist", _steps_there(folder)) from None
        except (OSError, EOFError, zlib.error, ValueError, TypeError, RecursionError) as error:
            raise EnvironmentProblem(f"{path} is damaged: {error}") from None


def _steps_there(folder: str | Path) -> str:
    steps = steps_with_completions(folder)
    return f"There are {len(steps)} files, of the steps {steps[0]} to {steps[-1]}." if steps else "There are none yet."


def _file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.jsonl.gz"
