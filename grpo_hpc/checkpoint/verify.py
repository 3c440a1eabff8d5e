"""Comparing two models on disk tensor by tensor, whatever format each has, and checking one against its own digests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from grpo_hpc.checkpoint.copies import Target
from grpo_hpc.checkpoint.folders import Folder
from grpo_hpc.checkpoint.planning import placed
from grpo_hpc.checkpoint.run import Work, check_all, copier, in_workers, resident
from grpo_hpc.checkpoint.to_hf import wanted
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.family import HEAD
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.on_disk.model_folder import embedding_of, left_out
from grpo_hpc.models.on_disk.stored import Block
from grpo_hpc.models.shape import ModelShape


@dataclass(frozen=True)
class View:
    """One tensor as Hugging Face names it, wherever its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    target: Target


@dataclass
class Report:
    """What a verification found.

    Attributes:
        checked: tensors (or pieces) that were read.
        faults: what is wrong, in words; empty when all is well.
        left_out: tensors of one of two models that the family of the other leaves out; they are not compared.
    """

    checked: int = 0
    nbytes: int = 0
    faults: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def verify_whole(folder: Folder, work: Work) -> Report:
    """Read everything of which a digest is known and compare.

    Raises:
        CheckpointError: no digest is known.
    """
    checks = folder.checks()
    if not checks:
        raise CheckpointError(
            f"{folder.path} has no digests to verify it by", "Compare it with another folder: checkpoint verify A B."
        )
    return Report(len(checks), sum(check.nbytes for check in checks), check_all(checks, work))


def verify_equal(first: Folder, second: Folder, work: Work) -> Report:
    """Every tensor of two models: name, shape, dtype, value."""
    ours, theirs = ({view.name: view for view in views(folder)} for folder in (first, second))
    report = Report()
    for one, other, elsewhere in ((ours, theirs, second), (theirs, ours, first)):
        _explain(one, other, elsewhere, report)
        report.faults += [f"{name} is missing from {elsewhere.path}" for name in sorted(one.keys() - other.keys())]
    pairs = []
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            report.faults.append(f"{name}: {a.dtype} {list(a.shape)} in A, {b.dtype} {list(b.shape)} in B")
        else:
            pairs.append((a, b))
    report.checked, report.nbytes = len(pairs), sum(2 * one.target.raw for one, _ in pairs)
    report.faults += _different(pairs, report.nbytes, work)
    return report


def _explain(one: dict[str, View], other: dict[str, View], elsewhere: Folder, report: Report) -> None:
    """What the configuration of ``elsewhere`` says about tensors that it has not: a tied head is its embedding, and
    what its family leaves out is in no model."""
    missing = one.keys() - other.keys()
    shape = _shape(elsewhere) if missing else None
    if shape is None:
        return
    for name in sorted(left_out(missing, shape)):
        if name == HEAD:
            other[HEAD] = replace(other[embedding_of(shape)], name=HEAD)
        else:
            report.left_out.append(name)
            del one[name]


def _shape(folder: Folder) -> ModelShape | None:
    """What a folder's configuration says, if there is one that is read here."""
    try:
        return read_shape(folder.config) if folder.config else None
    except CheckpointError:
        return None


def _different(pairs: list[tuple[View, View]], total: int, work: Work) -> list[str]:
    window, at, faults = work.window(resident()), 0, []
    tasks = ((number, (one.target, other.target)) for number, (one, other) in enumerate(pairs))
    for number, different in in_workers(_compare, tasks, window, work.workers):
        at += 2 * pairs[number][0].target.raw
        work.progress(at, total)
        if different:
            faults.append(f"{pairs[number][0].name}: {different:,} of {pairs[number][0].target.raw:,} bytes differ")
    return sorted(faults)


def _compare(pair: tuple[Target, Target]) -> int:
    return copier().different_bytes(*pair)


def views(folder: Folder) -> Iterator[View]:
    """All tensors of a model under their Hugging Face names."""
    if folder.kind == "hf":
        for stored in folder.tensors.values():
            rows = stored.shape[0] if stored.shape else 1
            whole = list(stored.blocks((), slice(0, rows)))
            yield View(stored.name, stored.dtype, stored.shape, _target(stored.name, rows, stored.nbytes, whole))
        return
    if folder.config is None:
        raise CheckpointError(f"{folder.path} has no Hugging Face configuration", "Name its folder with --hf-config.")
    for name, shape, stored, prefix, parts in wanted(folder, read_shape(folder.config)):
        blocks: list[Block] = []
        at = 0
        for part in parts:
            blocks += placed(stored.blocks(prefix, part), at)
            at += part.stop - part.start
        nbytes = sum(block.rows * block.width for block in blocks)
        yield View(name, stored.dtype, shape, _target(name, at, nbytes, blocks))


def _target(name: str, rows: int, nbytes: int, blocks: list[Block]) -> Target:
    return Target(name, Path(), 0, b"", b"", rows, nbytes // max(rows, 1), tuple(blocks))
