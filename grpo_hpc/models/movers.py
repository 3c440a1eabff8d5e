"""Moving weights between Hugging Face tensors and the Megatron model on these ranks, by the family's weight map."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor
from torch.nn import Parameter

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.hf_folder import HfFolder
from grpo_hpc.models.policy import PolicyModel
from grpo_hpc.models.weight_map import Entry, Shard, entries

Meta = tuple[tuple[int, ...], torch.dtype]


def local_parameters(model: PolicyModel) -> dict[str, Parameter]:
    """This rank's parameters by their global names: layers counted from 0 over all pipeline stages."""
    renamed = {}
    for name, parameter in model.named_parameters():
        if name.startswith("decoder.layers."):
            _, _, local, rest = name.split(".", 3)
            layer = model.decoder.layers[int(local)].layer_number - 1
            name = f"decoder.layers.{layer}.{rest}"
        renamed[name] = parameter
    return renamed


def load_hf(model: PolicyModel, folder: HfFolder, layer_spec: str) -> None:
    """Fill this rank's parameters, reading only its slices.

    Raises:
        CheckpointError: a tensor is missing, unused or of another shape, or a parameter has no rule.
    """
    shard = Shard(mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size())
    parameters = local_parameters(model)
    table = entries(weight_map(model.shape), model.shape.layers, layer_spec)
    _check_names(table, set(parameters), folder)
    for entry in table:
        parameter = parameters.get(entry.name)
        if parameter is None:
            continue
        value = entry.layout.to_megatron([folder.slice(name) for name in entry.hf_names], shard)
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{', '.join(entry.hf_names)} in {folder.path} give {entry.name} the shape {tuple(value.shape)}, "
                f"but its config.json asks for {tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(value)


def _check_names(table: list[Entry], parameters: set[str], folder: HfFolder) -> None:
    known = {entry.name for entry in table}
    if orphans := sorted(parameters - known):
        raise CheckpointError(f"the weight map has no rule for Megatron parameters {orphans[:5]}")
    expected = {name for entry in table for name in entry.hf_names}
    tied = {"lm_head.weight"}  # some tied models store the repeated matrix all the same
    if unused := sorted(folder.names() - expected - tied):
        raise CheckpointError(
            f"{folder.path} holds {len(unused)} tensors that its config.json does not explain: {unused[:5]}",
            "The folder may belong to another model family than its config.json says.",
        )


class HfExporter:
    """Streams the whole model as Hugging Face tensors; every rank takes part and receives every tensor.

    Pipeline stages and tensor-parallel ranks contribute their shards; one tensor is whole at a time.

    Args:
        values: what to stream of each parameter, such as its gradient; by default the parameter itself.
    """

    def __init__(
        self, model: PolicyModel, layer_spec: str, values: Callable[[Parameter], Tensor] = lambda p: p.detach()
    ) -> None:
        self._parameters = {name: values(parameter) for name, parameter in local_parameters(model).items()}
        self._table = [e for e in entries(weight_map(model.shape), model.shape.layers, layer_spec) if e.exported]
        held = {name: (tuple(p.shape), p.dtype) for name, p in self._parameters.items()}
        stages: list[dict[str, Meta]] = [{}] * mpu.get_pipeline_model_parallel_world_size()
        dist.all_gather_object(stages, held, group=mpu.get_pipeline_model_parallel_group())
        self._owner = {name: stage for stage in reversed(range(len(stages))) for name in stages[stage]}
        self._meta = {name: meta for stage in stages for name, meta in stage.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names and tensors in the training dtype. Collective: every rank must consume it to the end."""
        for entry in self._table:
            shard = self._from_owner(entry.name)
            shards = self._gather(shard) if entry.layout.sharded else [shard]
            yield from zip(entry.hf_names, entry.layout.to_hf(shards), strict=True)

    def _from_owner(self, name: str) -> Tensor:
        pipeline = mpu.get_pipeline_model_parallel_world_size()
        parameter = self._parameters.get(name)
        if pipeline == 1 and parameter is not None:
            return parameter
        shape, dtype = self._meta[name]
        here = self._owner[name] == mpu.get_pipeline_model_parallel_rank()
        device = next(iter(self._parameters.values())).device
        shard = parameter if here and parameter is not None else torch.empty(shape, dtype=dtype, device=device)
        group = mpu.get_pipeline_model_parallel_group()
        dist.broadcast(shard, dist.get_global_rank(group, self._owner[name]), group=group)
        return shard

    def _gather(self, shard: Tensor) -> list[Tensor]:
        size = mpu.get_tensor_model_parallel_world_size()
        if size == 1:
            return [shard]
        shards = [torch.empty_like(shard) for _ in range(size)]
        dist.all_gather(shards, shard.contiguous(), group=mpu.get_tensor_model_parallel_group())
        return shards
