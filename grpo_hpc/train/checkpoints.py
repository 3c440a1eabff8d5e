"""Training checkpoints: Megatron's distributed format plus the trainer's own state, complete or not there at all.

Layout of one checkpoint, ``checkpoints/step_00000020/``::

    megatron/       model (or its adapters), optimizer and a moving reference, megatron-core's distributed checkpoint
    state.json      step, sample position
    rollout/        what is left of a rollout, and what is carried over (see rollout_files.py)
    manifest.json   every file with its size; written last

A checkpoint is built under a name ending in ``.tmp`` and renamed when its manifest is in place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_hpc.control import Control
from grpo_hpc.errors import CheckpointError
from grpo_hpc.rollout.collect import Collected, nothing_collected
from grpo_hpc.train.experience import Experience
from grpo_hpc.train.megatron.distributed_checkpoint import DistributedCheckpoint
from grpo_hpc.train.rollout_files import Place, write_rollout

MANIFEST = "manifest.json"


@dataclass
class TrainerState:
    """Where the run stands between two optimizer steps.

    Attributes:
        step: finished optimizer steps.
        position: prompts taken from the endless sample order, those of ``experience`` included.
        experience: the current rollout while steps of it remain.
        carried: what dynamic sampling carries over to the next rollout.
    """

    step: int = 0
    position: int = 0
    experience: Experience | None = None
    carried: Collected = field(default_factory=nothing_collected)


def save(folder: Path, contents: DistributedCheckpoint, state: TrainerState, control: Control, place: Place) -> Path:
    """Write ``folder/step_N``; collective. Nothing is written when that checkpoint is there already."""
    target = folder / f"step_{state.step:08d}"
    building = target.with_name(target.name + ".tmp")

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

    def finish() -> None:
        (building / "state.json").write_text(json.dumps({"step": state.step, "position": state.position}) + "\n")
        _write_manifest(building, state.step)
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
    state = TrainerState(record["step"], record["position"], *left)
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
    return {"step": record["step"], "position": record["position"], "rollout": (checkpoint / "rollout").is_dir()}


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, if there is one. One rank looks, or they might not see the same."""
    return next((path for path in sorted(_checkpoints(folder), reverse=True) if is_complete(path)), None)


def prune(folder: Path, keep: int | None) -> None:
    """Delete all but the ``keep`` newest checkpoints, and what unfinished saves left; call on one rank."""
    for left_over in folder.glob("step_*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)
    if keep is not None:
        for old in sorted(_checkpoints(folder))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def is_complete(checkpoint: Path) -> bool:
    """True when every file that the manifest names is there in its size."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
        # a resharded checkpoint has digests beside the sizes
        sizes = {name: listed["size"] if isinstance(listed, dict) else listed for name, listed in files.items()}
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step_*") if path.is_dir() and path.suffix != ".tmp"]


def _write_manifest(folder: Path, step: int) -> None:
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    part = folder / (MANIFEST + ".part")
    with part.open("w") as out:
        json.dump({"step": step, "files": files}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    part.rename(folder / MANIFEST)
