"""Plans of conversions: which bytes go where, from the weight map alone. Nothing is read but indexes and headers."""

from __future__ import annotations

import bisect
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grpo_hpc.checkpoint.copies import Add, Check, Job, Target
from grpo_hpc.checkpoint.folders import Folder
from grpo_hpc.checkpoint.index_file import METADATA, index_bytes
from grpo_hpc.checkpoint.megatron_folder import empty_object
from grpo_hpc.checkpoint.naming import Parallel
from grpo_hpc.checkpoint.run import Plan
from grpo_hpc.checkpoint.torch_file import frame
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import family
from grpo_hpc.models.families.counting import count_parameters
from grpo_hpc.models.on_disk.model_folder import require_floating
from grpo_hpc.models.on_disk.stored import ITEMSIZE, Block, Chunk, Size, Stored
from grpo_hpc.models.shape import ModelShape

_LARGEST_CHUNK = 512 * 2**20  # bytes; larger ones could not be shared among workers


def placed(blocks: Iterable[Block], row: int) -> Iterator[Block]:
    """The blocks, ``row`` rows further down."""
    for block in blocks:
        yield replace(block, row=block.row + row)


def in_parts(rows: slice, width: int) -> Iterator[slice]:
    """Row ranges of at most the largest chunk."""
    height = max(1, _LARGEST_CHUNK // max(width, 1))
    for start in range(rows.start, rows.stop, height):
        yield slice(start, min(start + height, rows.stop))


class MegatronWriter:
    """Collects the chunks of a Megatron checkpoint and gives each its place in a file."""

    def __init__(self) -> None:
        self._end: defaultdict[str, int] = defaultdict(int)
        self._chunks: defaultdict[str, list[Chunk]] = defaultdict(list)
        self._described: dict[str, tuple[str, Size]] = {}
        self._archives: dict[tuple[str, Size], tuple[str, int, int]] = {}
        self.jobs: list[Job] = []

    def target(
        self,
        key: str,
        dtype: str,
        shape: Size,
        start: Size,
        size: Size,
        file: str,
        blocks: Sequence[Block],
        adds: Sequence[Add] = (),
        *,
        depth: int,
    ) -> Target:
        """A chunk ``start, size`` of the tensor ``key``, filled by ``blocks`` and then ``adds``.

        ``depth`` dimensions lead; behind them it is a matrix.
        """
        head, tail = frame(dtype, size)
        width = math.prod(size[depth + 1 :]) * ITEMSIZE[dtype]
        target = Target(key, Path(file), self._end[file], head, tail, size[depth], width, tuple(blocks), tuple(adds))
        self._described[key] = (dtype, shape)
        self._chunks[key].append(Chunk(Path(file), target.offset + len(head), start, size))
        self._archives[key, start] = (file, target.offset, target.nbytes)
        self._end[file] += target.nbytes
        return target

    def raw(self, name: str, file: str, source: Path, offset: int, length: int) -> None:
        """Bytes of another checkpoint's object as they are."""
        block = Block(source, offset, length, 1, length, 0, 0)
        self.jobs.append(Job((Target(name, Path(file), self._end[file], b"", b"", 1, length, (block,)),)))
        self._archives[name, ()] = (file, self._end[file], length)
        self._end[file] += length

    def plan(self, about: dict[str, Any], objects: Iterable[str], files: dict[str, bytes], checks: list[Check]) -> Plan:
        """The whole checkpoint: index, Megatron's own small files, ``files``, and the chunks."""
        small: list[tuple[str, int | None, bytes]] = []
        empty = empty_object()
        first = min(self._end)
        self._archives["", ()] = (first, self._end[first], len(empty))
        small.append((first, self._end[first], empty))
        self._end[first] += len(empty)
        stored = [
            Stored(key, dtype, shape, tuple(self._chunks[key])) for key, (dtype, shape) in self._described.items()
        ]
        small += [(METADATA, None, index_bytes(stored, self._archives, objects))]
        small += [(name, None, content) for name, content in files.items()]
        return Plan(dict(self._end), with_checks(self.jobs, checks), tuple(small), about)


def with_checks(jobs: Sequence[Job], checks: Sequence[Check]) -> tuple[Job, ...]:
    """The jobs, each with the checks of what it is the first to read."""
    by_file: defaultdict[Path, list[Check]] = defaultdict(list)
    for check in sorted(checks, key=lambda check: check.offset):
        by_file[check.file].append(check)
    starts = {file: [check.offset for check in found] for file, found in by_file.items()}
    seen: set[tuple[Path, int]] = set()

    def first_reads(job: Job) -> Iterator[Check]:
        for block in (block for target in job.targets for block in target.blocks):
            number = bisect.bisect_right(starts.get(block.file, []), block.offset) - 1
            if number >= 0 and (block.file, number) not in seen:
                seen.add((block.file, number))
                yield by_file[block.file][number]

    return tuple(replace(job, checks=tuple(first_reads(job))) for job in jobs)


def model_dtype(tensors: Iterable[Stored], shape: ModelShape, config: dict[str, Any]) -> str:
    """The dtype of all tensors; some families keep a few in float32.

    Raises:
        CheckpointError: a tensor has another dtype, or one that is no plain floating point (quantised models).
    """
    exempt = family(shape.family).float32
    strict = [tensor for tensor in tensors if not tensor.name.endswith(exempt or ("\0",))]
    for tensor in strict:
        require_floating(tensor)
    found = Counter(tensor.dtype for tensor in strict)
    said = str(config.get("dtype") or config.get("torch_dtype") or "")
    right = said if len(found) > 1 and said in found else found.most_common(1)[0][0]
    for tensor in strict:
        if tensor.dtype != right:
            raise CheckpointError(
                f"tensor {tensor.name!r} in {tensor.chunks[0].file} is {tensor.dtype}, but the model is {right} "
                f"({found[right]:,} of {len(strict):,} tensors)"
            )
    return right


def about(source: Folder, kind: str, shape: ModelShape, parallel: Parallel | None) -> dict[str, Any]:
    """What the manifest says about a converted folder."""
    used = {chunk.file for tensor in source.tensors.values() for chunk in tensor.chunks}
    sizes = sorted((str(file.relative_to(source.path)), file.stat().st_size) for file in used)
    return {
        "kind": kind,
        "family": shape.family,
        "parameters": count_parameters(shape),
        "source": str(source.path.resolve()),
        "source_files": hashlib.sha256(repr(sizes).encode()).hexdigest(),
        "layout": asdict(parallel) if parallel else None,
    }
