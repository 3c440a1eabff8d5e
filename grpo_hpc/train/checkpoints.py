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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from grpo_hpc.control import Control
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.rollout.collect import Collected, nothing_collected
from grpo_hpc.train.experience import Experience
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy
from grpo_hpc.train.rollout_files import Place, write_rollout

MANIFEST = "manifest.json"
_REFERENCE = "reference."
# How the distributed optimizer is saved, by whether a checkpoint must be readable in other layouts. If not, every rank
# keeps its shard as it is; if so, the shards of a parameter are gathered, which costs time and memory at every save.
_SHARDING = {False: "dp_reshardable", True: "fully_reshardable"}


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


def save(
    folder: Path,
    policy: TrainedPolicy,
    state: TrainerState,
    platform: Platform,
    control: Control,
    place: Place,
    reference: Sequence[PolicyModel] | None = None,
    reshardable: bool = False,
) -> Path:
    """Write ``folder/step_N``; collective. Nothing is written when that checkpoint is there already.

    Args:
        reference: a reference model that is saved too, because it moves.
        reshardable: the optimizer's state can be loaded in another parallel layout.
    """
    target = folder / f"step_{state.step:08d}"
    if is_complete(target):
        return target
    building = target.with_name(target.name + ".tmp")

    def clear() -> None:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        (building / "megatron").mkdir(parents=True)
        (building / "rollout").mkdir()

    _on_first_rank(clear)
    write_rollout(building / "rollout", state.experience, state.carried, place)
    with platform.megatron():
        state_dict = _sharded_state(policy, reference, _SHARDING[reshardable], loading=False)
        dist_checkpointing.save(state_dict, str(building / "megatron"))

    def finish() -> None:
        (building / "state.json").write_text(json.dumps({"step": state.step, "position": state.position}) + "\n")
        _write_manifest(building, state.step)
        building.rename(target)

    _on_first_rank(finish)
    return target


def load(
    checkpoint: Path,
    policy: TrainedPolicy,
    platform: Platform,
    rollout: Callable[[Path], tuple[Experience | None, Collected]],
    reference: Sequence[PolicyModel] | None = None,
) -> TrainerState:
    """Restore model and optimizer in place and return the trainer's state; collective.

    Args:
        rollout: reads the folder that has what is left of a rollout (:func:`read_rollout`).

    Raises:
        CheckpointError: it is incomplete, or of an older version and in the middle of a rollout.
    """
    if not is_complete(checkpoint):
        raise CheckpointError(f"{checkpoint} is not a complete checkpoint (its manifest is missing or does not match)")
    record = json.loads((checkpoint / "state.json").read_text())
    if record.get("rollout") or record.get("surplus"):
        raise CheckpointError(
            f"{checkpoint} was saved by an older version in the middle of a rollout, in a form that is not read now",
            "Resume from a checkpoint between two rollouts, or finish this one with the version that wrote it.",
        )
    folder = checkpoint / "rollout"
    left = rollout(folder) if folder.is_dir() else (None, nothing_collected())
    state = TrainerState(record["step"], record["position"], *left)
    with platform.megatron(), torch.no_grad():  # in fp32 the optimizer's main parameters are views of the model's
        saved = str(checkpoint / "megatron")
        sharding = dist_checkpointing.load_common_state_dict(saved)["optimizer"].get("param_state_sharding_type")
        state_dict = _sharded_state(policy, reference, sharding or _SHARDING[False], loading=True)
        loaded = dist_checkpointing.load(state_dict, saved)
        policy.load([loaded[name] for name in _names("model", policy.chunks)], loaded["optimizer"], state.step)
        for name, chunk in zip(_names("reference", reference or ()), reference or (), strict=True):
            chunk.load_state_dict({k.removeprefix(_REFERENCE): v for k, v in loaded[name].items()})
    return state


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, if there is one."""
    return max((path for path in _checkpoints(folder) if is_complete(path)), default=None)


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


def _names(what: str, chunks: Sequence[Any]) -> list[str]:
    return [f"{what}{number}" for number in range(len(chunks))]


def _sharded_state(
    policy: TrainedPolicy, reference: Sequence[PolicyModel] | None, sharding: str, loading: bool
) -> dict[str, Any]:
    metadata = {"distrib_optim_sharding_type": sharding}
    policy.settle()
    parts = [_trained(policy, chunk.sharded_state_dict(metadata=metadata)) for chunk in policy.chunks]
    models = dict(zip(_names("model", policy.chunks), parts, strict=True))
    optimizer = policy.optimizer.sharded_state_dict(models, is_loading=loading, metadata=metadata)
    references = [chunk.sharded_state_dict(prefix=_REFERENCE, metadata=metadata) for chunk in reference or ()]
    return {**models, "optimizer": optimizer, **dict(zip(_names("reference", references), references, strict=True))}


def _trained(policy: TrainedPolicy, entries: dict[str, Any]) -> dict[str, Any]:
    """All of ``entries``, or the adapters alone where they are what is trained."""
    if policy.adapters is None:
        return entries
    return {name: entry for name, entry in entries.items() if name.endswith((".lora_a", ".lora_b"))}


def _write_manifest(folder: Path, step: int) -> None:
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    part = folder / (MANIFEST + ".part")
    with part.open("w") as out:
        json.dump({"step": step, "files": files}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    part.rename(folder / MANIFEST)


def _on_first_rank(action: Callable[[], None]) -> None:
    if dist.get_rank() == 0:
        action()
    dist.barrier()
