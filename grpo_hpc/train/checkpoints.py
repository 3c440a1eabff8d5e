"""Training checkpoints: Megatron's distributed format plus the trainer's own state, complete or not there at all.

Layout of one checkpoint, ``checkpoints/step_00000020/``::

    megatron/       model (or its adapters), optimizer and a moving reference, megatron-core's distributed checkpoint
    state.json      step, sample position, whether an evaluation is to be made again
    rollout/        what is left of a rollout, and what is carried over (see rollout_files.py)
    manifest.json   every file with its size and digests of its pieces; written last

A checkpoint is built under a name ending in ``.tmp`` and renamed when its manifest is in place. One that is not what
was written is renamed, too, when a resume finds out: it ends in ``.damaged`` then.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from grpo_hpc.control import Control
from grpo_hpc.digests import ALGORITHM, Piece, digest, pieces_of
from grpo_hpc.errors import CheckpointError
from grpo_hpc.rollout.collect import Collected, nothing_collected
from grpo_hpc.saved_files import GONE, MANIFEST, NONE, listed_files, what_is_missing
from grpo_hpc.train.experience import Experience
from grpo_hpc.train.megatron.distributed_checkpoint import DistributedCheckpoint
from grpo_hpc.train.rollout_files import Place, write_rollout

_BUILDING, _DAMAGED = ".tmp", ".damaged"


@dataclass
class TrainerState:
    """Where the run stands between two optimizer steps.

    Attributes:
        step: finished optimizer steps.
        position: prompts taken from the endless sample order, those of ``experience`` included.
        experience: the current rollout while steps of it remain.
        carried: what dynamic sampling carries over to the next rollout, and what was sampled of that one before it was
            cut short.
        evaluates: whether an evaluation of the present weights was cut short.
    """

    step: int = 0
    position: int = 0
    experience: Experience | None = None
    carried: Collected = field(default_factory=nothing_collected)
    evaluates: bool = False


def save(folder: Path, contents: DistributedCheckpoint, state: TrainerState, control: Control, place: Place) -> Path:
    """Write ``folder/step_N``; collective. Nothing is written when that checkpoint is there already."""
    target = folder / f"step_{state.step:08d}"
    building = target.with_name(target.name + _BUILDING)

    def begin() -> bool:
        if is_complete(target):
            return False
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        (building / "megatron").mkdir(parents=True)
        (building / "rollout").mkdir()
        return True

    if not control.from_first(begin, "the first rank to begin a checkpoint"):
        return target
    write_rollout(building / "rollout", state.experience, state.carried, place)
    contents.save(building / "megatron")
    own = {name: pieces_of(building / name) for name in _written_by(control.rank, building)}
    told = control.gather_at_first(own, "all ranks to have digests of what they wrote")

    def finish() -> None:
        (building / "state.json").write_text(json.dumps(_told(state)) + "\n")
        _write_manifest(building, state.step, {name: pieces for part in told for name, pieces in part.items()})
        building.rename(target)

    control.from_first(finish, "the first rank to complete a checkpoint")
    return target


def load(
    checkpoint: Path,
    contents: DistributedCheckpoint,
    control: Control,
    rollout: Callable[[Path], tuple[Experience | None, Collected]],
) -> TrainerState:
    """Restore model and optimizer in place and return the trainer's state; collective.

    Args:
        rollout: reads the folder that has what is left of a rollout (:func:`read_rollout`).

    Raises:
        CheckpointError: on every rank: it is incomplete, or of an older version and in the middle of a rollout.
    """
    record = control.from_first(lambda: _record(checkpoint), "the first rank to look at a checkpoint")
    folder = checkpoint / "rollout"
    left = rollout(folder) if record["rollout"] else (None, nothing_collected())
    state = TrainerState(record["step"], record["position"], *left, record["evaluates"])
    contents.load(checkpoint / "megatron", state.step)
    return state


def _record(checkpoint: Path) -> dict[str, Any]:
    """What a complete checkpoint says of the trainer, and whether it has a folder ``rollout``."""
    if not is_complete(checkpoint):
        raise CheckpointError(f"{checkpoint} is not a complete checkpoint (its manifest is missing or does not match)")
    record = json.loads((checkpoint / "state.json").read_text())
    if record.get("rollout") or record.get("surplus"):
        raise CheckpointError(
            f"{checkpoint} was saved by an older version in the middle of a rollout, in a form that is not read now",
            "Resume from a checkpoint between two rollouts, or finish this one with the version that wrote it.",
        )
    told = {"step": record["step"], "position": record["position"], "evaluates": record.get("evaluates", False)}
    return told | {"rollout": (checkpoint / "rollout").is_dir()}


def _told(state: TrainerState) -> dict[str, Any]:
    return {"step": state.step, "position": state.position, "evaluates": state.evaluates}


def newest_whole(folder: Path, control: Control, say: Callable[[str], None]) -> Path | None:
    """The checkpoint with the most steps that is still what was written; None where none was ever written. Collective.

    One rank looks what is there, or they might not see the same; all of them share the reading.

    Args:
        say: is told of each that is not; it is renamed, and the next older one is looked at.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole.
        OSError: one cannot be read here and now, which is no damage.
    """
    what = "the first rank to look for checkpoints"
    while (found := control.from_first(lambda: _newest(folder), what)) is not None:
        path, fault = found
        if not (fault := fault or _fault(path, control)):
            return path
        control.from_first(partial(_set_aside, path, fault, say), what)
    control.from_first(lambda: _require_none(folder), what)
    return None


def _newest(folder: Path) -> tuple[Path, str] | None:
    """The checkpoint with the most steps, and what is missing of it."""
    path = max(_checkpoints(folder), default=None)
    return None if path is None else (path, _missing(path))


def _missing(checkpoint: Path) -> str:
    """What is missing of a checkpoint by its manifest, or of that; empty when nothing is."""
    if missing := what_is_missing(checkpoint):
        return missing
    try:
        _pieces(checkpoint)
    except NONE as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _fault(checkpoint: Path, control: Control) -> str:
    """The first piece that is not what was written; empty when there is none. The ranks read a part of all each.

    Raises:
        OSError: on all ranks: one of them may not or cannot read, and says nothing about the checkpoint.
    """
    pieces = control.from_first(lambda: _pieces(checkpoint), "the first rank to read a manifest")
    mine = (_changed(checkpoint, *piece) for piece in pieces[control.rank :: control.size])
    first, refused = "", ""
    try:
        first = next(filter(None, mine), "")
    except OSError as error:
        refused = f"{error.filename} cannot be read by rank {control.rank}: {error.strerror}; nothing was set aside"
    told = control.gather((first, refused), "all ranks to compare a checkpoint with its digests")
    if why := next(filter(None, (refused for _, refused in told)), ""):
        raise OSError(why)
    return next(filter(None, (first for first, _ in told)), "")


def _changed(checkpoint: Path, name: str, offset: int, nbytes: int, noted: str) -> str:
    try:
        found = digest(checkpoint / name, offset, nbytes)
    except GONE:
        return f"{name} is gone"
    same = found == noted
    return "" if same else f"bytes {offset:,} to {offset + nbytes:,} of {name} are not what was written"


def _set_aside(checkpoint: Path, fault: str, say: Callable[[str], None]) -> None:
    aside = checkpoint.with_name(checkpoint.name + _DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    say(f"the checkpoint {checkpoint.name} is damaged and is called {aside.name} now: {fault}")


def _require_none(folder: Path) -> None:
    if damaged := sorted(path.name for path in folder.glob(f"step_*{_DAMAGED}")):
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {', '.join(damaged)}",
            "Put one that is whole there, as step_N. To begin at step 0 again, remove these.",
        )


def prune(folder: Path, keep: int | None) -> None:
    """Delete all but the ``keep`` newest checkpoints, what unfinished saves left, and what was damaged and made again.

    Call it on one rank.
    """
    for left_over in folder.glob(f"step_*{_BUILDING}"):
        shutil.rmtree(left_over, ignore_errors=True)
    there = sorted(_checkpoints(folder))
    for damaged in folder.glob(f"step_*{_DAMAGED}"):
        if there and damaged.stem <= there[-1].name:
            shutil.rmtree(damaged, ignore_errors=True)
    if keep is not None:
        for old in there[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def is_complete(checkpoint: Path) -> bool:
    """True when every file that the manifest names is there in its size."""
    return not _missing(checkpoint)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step_*") if path.is_dir() and path.suffix not in (_BUILDING, _DAMAGED)]


# -- the manifest ----------------------------------------------------------------------------------------------------


def _pieces(checkpoint: Path) -> list[tuple[str, int, int, str]]:
    """Name of a file, offset, bytes and digest of everything of which a digest was noted."""
    listed = {name: file for name, file in listed_files(checkpoint).items() if isinstance(file, dict)}
    pieces = [(name, piece) for name, file in listed.items() for piece in file["pieces"]]
    return [(name, int(offset), int(nbytes), str(noted)) for name, (_, offset, nbytes, noted) in pieces]


def _written_by(rank: int, folder: Path) -> list[str]:
    """Files that this rank has just written, which it reads from its own memory."""
    patterns = (f"megatron/__{rank}_*.distcp", f"rollout/rank_{rank:05d}.npz")
    return [str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern)]


def _write_manifest(folder: Path, step: int, told: Mapping[str, list[Piece]]) -> None:
    """The list of all files; digests that nobody has told are taken here."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        pieces = [[name, *piece] for piece in told.get(name) or pieces_of(path)]
        files[name] = {"size": path.stat().st_size, "pieces": pieces}
    part = folder / (MANIFEST + ".part")
    with part.open("w") as out:
        json.dump({"step": step, "digest": ALGORITHM, "files": files}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    part.rename(folder / MANIFEST)
