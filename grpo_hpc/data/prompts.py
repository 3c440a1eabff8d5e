"""A data set, read and tokenised once, that all processes of a node map into their memory.

A set is a folder in a cache, named by a digest of all that decides what is in it: data file, system message, tokenizer
and template. Another file or template is another folder, so nothing in a cache is ever out of date. A folder appears
complete or not at all, whoever else builds the same one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from grpo_hpc.data.exact_json import from_json, to_json
from grpo_hpc.data.record_files import TOO_DEEP, Mistakes, files_of
from grpo_hpc.data.rows import Row, numbered_rows
from grpo_hpc.errors import ConfigError, EnvironmentProblem, GrpoHpcError

_FORMAT = 1  # of the files below and of what a row becomes: raise it when either changes
_FORGOTTEN = 3600  # seconds after its last write, a half-built folder is nobody's any more
_AT_ONCE = 1000  # rows that are tokenised together
_TOKENS, _ROWS, _INDEX, _MANIFEST = "tokens.bin", "rows.bin", "index.bin", "manifest.json"


class ChatTokenizer(Protocol):
    """What a set needs of :class:`grpo_hpc.data.tokenizer.Tokenizer`."""

    @property
    def digest(self) -> str: ...
    def text(self, row: Row) -> str: ...
    def encode_all(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class _Manifest:
    """What a complete folder holds: int32 [tokens], JSON [row_bytes], int64 [prompts, 3].

    A row of the index says where a prompt's tokens and JSON end, and the line that it stands on. All little-endian.
    """

    prompts: int
    tokens: int
    row_bytes: int
    highest_token: int
    format: int = _FORMAT

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {_TOKENS: 4 * self.tokens, _ROWS: self.row_bytes, _INDEX: 24 * self.prompts}


class PromptSet:
    """Prompts with their token ids, in file order. Immutable; a process holds what it looks at and no more.

    Args:
        folder: made by :func:`open_prompts`.
        source: the data file, for messages.

    Raises:
        OSError, ValueError: the folder is not there, not complete, or of another format.
    """

    def __init__(self, folder: Path, source: str | Path) -> None:
        self.source = source
        self._manifest = _read_manifest(folder)
        self._tokens = _mapped(folder / _TOKENS, "<i4")
        self._rows = _mapped(folder / _ROWS, "u1")
        self._index = _mapped(folder / _INDEX, "<i8").reshape(-1, 3)
        self._chosen: Sequence[int] | np.ndarray = range(self._manifest.prompts)

    def __len__(self) -> int:
        return len(self._chosen)

    def tokens(self, number: int) -> np.ndarray:
        """Token ids of a prompt up to where the assistant is to speak: int32, read-only."""
        return self._part(self._tokens, number, 0)

    def row(self, number: int) -> Row:
        """A prompt as it was read."""
        return Row(**from_json(self._part(self._rows, number, 1).tobytes()))

    def fitting(self, longest: int) -> PromptSet:
        """The prompts of at most ``longest`` tokens.

        Raises:
            ConfigError: there are none.
        """
        lengths = np.diff(self._index[:, 0], prepend=0)[self._chosen]
        fitting = lengths <= longest
        if not fitting.any():
            raise ConfigError(
                f"all {len(self)} prompts of {self.source} have more than {longest} tokens; the shortest has "
                f"{lengths.min()}",
                "Raise max_length or vllm_max_model_len, or shorten the prompts.",
            )
        if fitting.all():
            return self
        chosen = copy(self)
        chosen._chosen = np.asarray(self._chosen)[fitting]
        return chosen

    def require_vocabulary(self, size: int) -> None:
        """Refuse token ids that a model with ``size`` rows in its embedding has no row for.

        Raises:
            ConfigError: lists the first few rows with their lines.
        """
        if self._manifest.highest_token < size:
            return
        mistakes = Mistakes(self.source)
        for at in np.unique(np.searchsorted(self._index[:, 0], np.flatnonzero(self._tokens >= size), side="right")):
            highest = self._tokens[self._start(at, 0) : self._index[at, 0]].max()
            mistakes.add(int(self._index[at, 2]), f"has the token {highest}, and the model's embedding has {size} rows")
        mistakes.require_none("The tokenizer and the model do not belong together: see vocab_size in config.json.")

    def _part(self, values: np.ndarray, number: int, column: int) -> np.ndarray:
        at = self._chosen[number]
        return values[self._start(at, column) : self._index[at, column]]

    def _start(self, at: int, column: int) -> int:
        return int(self._index[at - 1, column]) if at else 0


def open_prompts(
    source: str | Path,
    tokenizer: ChatTokenizer,
    cache: Path,
    *,
    system: str | None = None,
    builds: bool = True,
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
) -> PromptSet:
    """The rows of ``source`` with their tokens; read and tokenised only if ``cache`` does not have them yet.

    Args:
        source: a data file as for :func:`grpo_hpc.data.rows.read_rows`.
        tokenizer: the model's.
        cache: a folder, made when it is missing. It may be on one node or shared by many, and by runs.
        system: message in front of chats without their own.
        builds: whether this process reads the data. One process that sees ``cache`` must; several may.
        gather: everybody's messages on every process, in the same order; all processes call this function together.

    Raises:
        ConfigError: rows are wrong, or the chat template refuses them; the first few are listed with their lines. Every
            process raises what one of them found.
        EnvironmentProblem: the cache cannot be written or read, or processes found different data files.
    """
    name, error = None, None
    if builds:
        try:
            name = _digest(source, tokenizer, system)
            if _opened(cache / name, source) is None:
                _build(cache / name, source, tokenizer, system)
        except GrpoHpcError as found:
            error = found
    names, errors = zip(*gather((name, error)), strict=True)
    for problem in filter(None, errors):
        raise problem
    return _agreed(cache, set(filter(None, names)), source)


def _agreed(cache: Path, names: set[str], source: str | Path) -> PromptSet:
    if len(names) > 1:
        raise EnvironmentProblem(
            f"the nodes do not see the same data: {source}, or the tokenizer, differs in size, time or content",
            "Keep it on a file system that all nodes share, and do not change it while a run starts.",
        )
    folder = cache / names.pop()
    if (prompts := _opened(folder, source)) is None:
        raise EnvironmentProblem(
            f"the tokenised data set {folder} cannot be read on this node",
            "Set GRPO_HPC_CACHE to a folder that exists on every node, its own or a shared one.",
        )
    return prompts


def _digest(source: str | Path, tokenizer: ChatTokenizer, system: str | None) -> str:
    """The name of a set. Files are known by path, size and time, as make does."""
    files = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files_of(source)]
    decisive = [_FORMAT, files, system, tokenizer.digest]
    return hashlib.blake2b(json.dumps(decisive).encode(), digest_size=16).hexdigest()


# -- reading -------------------------------------------------------------------------------------------------------


def _opened(folder: Path, source: str | Path) -> PromptSet | None:
    try:
        return PromptSet(folder, source)
    except (OSError, ValueError, TypeError):
        return None


def _read_manifest(folder: Path) -> _Manifest:
    manifest = _Manifest(**json.loads((folder / _MANIFEST).read_text()))
    found = {name: (folder / name).stat().st_size for name in manifest.sizes}
    if manifest.format != _FORMAT or found != manifest.sizes:
        raise ValueError(f"{folder} is not complete")
    return manifest


def _mapped(path: Path, dtype: str) -> np.ndarray:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=dtype)


# -- building ------------------------------------------------------------------------------------------------------


def _build(folder: Path, source: str | Path, tokenizer: ChatTokenizer, system: str | None) -> None:
    draft = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
    try:
        draft.mkdir(parents=True)
        _remove_forgotten(folder)
        manifest = _write(draft, source, tokenizer, system)
        (draft / _MANIFEST).write_text(json.dumps(asdict(manifest)))
        _publish(draft, folder, source)
    except OSError as error:
        raise EnvironmentProblem(
            f"the tokenised data set cannot be written to {folder.parent}: {error}",
            "Free space there, or set GRPO_HPC_CACHE to another folder that exists on every node.",
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove_forgotten(folder: Path) -> None:
    """Remove what killed processes left of ``folder``; others may be building it right now."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        with suppress(OSError):  # somebody else has removed it
            if time.time() - max(path.stat().st_mtime for path in [left, *left.iterdir()]) > _FORGOTTEN:
                shutil.rmtree(left, ignore_errors=True)


def _write(folder: Path, source: str | Path, tokenizer: ChatTokenizer, system: str | None) -> _Manifest:
    mistakes, index = Mistakes(source), array("q")
    token_end, row_end, highest = 0, 0, 0
    with (folder / _TOKENS).open("wb") as token_file, (folder / _ROWS).open("wb") as row_file:
        for line, row, tokens in _encoded(numbered_rows(source, system), tokenizer, mistakes):
            token_end += token_file.write(tokens.tobytes()) // 4
            row_end += row_file.write(row)
            index.extend((token_end, row_end, line))
            highest = max(highest, int(tokens.max()))
    mistakes.require_none()
    (folder / _INDEX).write_bytes(np.array(index, dtype="<i8").tobytes())
    return _Manifest(len(index) // 3, token_end, row_end, highest)


def _encoded(
    rows: Iterator[tuple[int, Row]], tokenizer: ChatTokenizer, mistakes: Mistakes
) -> Iterator[tuple[int, bytes, np.ndarray]]:
    """Line, JSON and tokens of every row; rows that cannot be used go to ``mistakes``."""
    while chunk := list(islice(rows, _AT_ONCE)):
        good = [(line, *ready) for line, row in chunk if (ready := _ready(line, row, tokenizer, mistakes))]
        encoded = tokenizer.encode_all([text for _, _, text in good]) if good else []
        for (line, record, _), tokens in zip(good, encoded, strict=True):
            if tokens:
                yield line, record, np.array(tokens, dtype="<i4")
            else:
                mistakes.add(line, "is no token at all in the model's chat template")


def _ready(line: int, row: Row, tokenizer: ChatTokenizer, mistakes: Mistakes) -> tuple[bytes, str] | None:
    try:
        return to_json(vars(row)), tokenizer.text(row)
    except TypeError as error:
        mistakes.add(line, f"holds {error}, which cannot be kept")
    except RecursionError:
        mistakes.add(line, TOO_DEEP)
    except ConfigError as error:
        mistakes.add(line, error.message)
    return None


def _publish(draft: Path, folder: Path, source: str | Path) -> None:
    """Rename ``draft`` to ``folder``, unless a complete one is there by now; a damaged one makes way."""
    for _ in range(3):
        with suppress(OSError):
            draft.rename(folder)
            return
        if _opened(folder, source):
            return
        damaged = draft.with_name(f"{draft.name}.damaged")
        with suppress(OSError):
            folder.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    draft.rename(folder)
