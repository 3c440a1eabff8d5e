"""Model and optimizer in Megatron-Core's distributed checkpoint format.

Data-parallel ranks hold the same weights, and those of optimizers that are not sharded: each of them writes a part of
that, and reads a part and hands it to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.serialization import (
    get_default_load_sharded_strategy,
    get_default_save_sharded_strategy,
)
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)

from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

_REFERENCE = "reference."
# How the distributed optimizer is saved, by whether a checkpoint must be readable in other layouts. If not, every rank
# keeps its shard as it is; if so, the shards of a parameter are gathered, which costs time and memory at every save.
_SHARDING = {False: "dp_reshardable", True: "fully_reshardable"}


class DistributedCheckpoint:
    """What a checkpoint holds of the model; every method is collective.

    Who writes what is settled at the first save of a run, and Megatron checks then that all of the model is written
    exactly once: later saves exchange nothing about it.

    Args:
        reference: a reference model that is saved too, because it moves.
        reshardable: the optimizer's state can be loaded in another parallel layout.
    """

    def __init__(
        self,
        policy: TrainedPolicy,
        platform: Platform,
        reference: Sequence[PolicyModel] | None = None,
        reshardable: bool = False,
    ) -> None:
        self._policy, self._platform = policy, platform
        self._reference, self._reshardable = reference or (), reshardable
        self._replicas = mpu.get_data_parallel_group(with_context_parallel=True)
        self._writing = get_default_save_sharded_strategy()
        if self._replicas.size() > 1:  # else it would check at every save
            self._writing = FullyParallelSaveStrategyWrapper(self._writing, self._replicas, do_cache_distribution=True)
        self._checked = False

    def save(self, folder: Path) -> None:
        """Write into ``folder``, which is there and empty."""
        with self._platform.megatron():
            state = self._sharded_state(_SHARDING[self._reshardable], loading=False)
            dist_checkpointing.save(
                state, str(folder), sharded_strategy=self._writing, validate_access_integrity=not self._checked
            )
        self._checked = True

    def load(self, folder: Path, step: int) -> None:
        """Restore model and optimizer in place, as ``step`` optimizer steps left them."""
        saved, chunks = str(folder), self._policy.chunks
        with self._platform.megatron(), torch.no_grad():  # in fp32 the optimizer's parameters are views of the model's
            sharding = dist_checkpointing.load_common_state_dict(saved)["optimizer"].get("param_state_sharding_type")
            state = self._sharded_state(sharding or _SHARDING[False], loading=True)
            reading = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(saved), self._replicas)
            loaded = dist_checkpointing.load(state, saved, sharded_strategy=reading)
            self._policy.load([loaded[name] for name in _names("model", chunks)], loaded["optimizer"], step)
            for name, chunk in zip(_names("reference", self._reference), self._reference, strict=True):
                chunk.load_state_dict({k.removeprefix(_REFERENCE): v for k, v in loaded[name].items()})

    def _sharded_state(self, sharding: str, loading: bool) -> dict[str, Any]:
        policy, metadata = self._policy, {"distrib_optim_sharding_type": sharding}
        policy.settle()
        parts = [_trained(policy, chunk.sharded_state_dict(metadata=metadata)) for chunk in policy.chunks]
        models = dict(zip(_names("model", policy.chunks), parts, strict=True))
        optimizer = policy.optimizer.sharded_state_dict(models, is_loading=loading, metadata=metadata)
        moving = [chunk.sharded_state_dict(prefix=_REFERENCE, metadata=metadata) for chunk in self._reference]
        return {**models, "optimizer": optimizer, **dict(zip(_names("reference", moving), moving, strict=True))}


def _names(what: str, chunks: Sequence[Any]) -> list[str]:
    return [f"{what}{number}" for number in range(len(chunks))]


def _trained(policy: TrainedPolicy, entries: dict[str, Any]) -> dict[str, Any]:
    """All of ``entries``, or the adapters alone where they are what is trained."""
    if policy.adapters is None:
        return entries
    return {name: entry for name, entry in entries.items() if name.endswith((".lora_a", ".lora_b"))}
