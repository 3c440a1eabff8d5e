"""Moving weights between Hugging Face tensors and the Megatron model on these ranks, by the family's weight map."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import family, weight_map
from grpo_hpc.models.hf_folder import HfFolder
from grpo_hpc.models.layouts import WHOLE, Shard
from grpo_hpc.models.policy import PolicyModel
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Entry, entries

Meta = tuple[tuple[int, ...], torch.dtype]

# the number of an expert on its rank, in the local layer spec and in TransformerEngine's grouped one
_EXPERT = re.compile(r"(?<=\.mlp\.experts\.local_experts\.)\d+(?=\.)|(?<=\.mlp\.experts\.linear_fc[12]\.weight)\d+$")

_ADAPTER = re.compile(r"\.lora_[ab]$")


def local_parameters(chunks: Sequence[PolicyModel]) -> dict[str, Tensor]:
    """This rank's parameters without adapters, and the router's correction biases, by their global names.

    Layers are counted from 0 over all pipeline stages, experts from 0 over all expert-parallel ranks.
    """
    renamed = {}
    for chunk in chunks:
        first_expert = _first_expert(chunk)
        named: list[tuple[str, Tensor]] = [item for item in chunk.named_parameters() if not _ADAPTER.search(item[0])]
        named += [(name, buffer) for name, buffer in chunk.named_buffers() if name.endswith("expert_bias")]
        for name, parameter in named:
            if name.startswith("decoder.layers."):
                _, _, local, rest = name.split(".", 3)
                layer = chunk.decoder.layers[int(local)].layer_number - 1
                name = f"decoder.layers.{layer}.{rest}"
            renamed[_global_expert(name, first_expert)] = parameter
    return renamed


def _global_expert(name: str, first: int) -> str:
    return _EXPERT.sub(lambda number: str(int(number[0]) + first), name)


def _first_expert(model: PolicyModel) -> int:
    experts = model.config.num_moe_experts
    if experts is None:
        return 0
    return mpu.get_expert_model_parallel_rank() * (experts // mpu.get_expert_model_parallel_world_size())


def shard_of(entry: Entry) -> Shard:
    """This rank's place among those that share the parameter."""
    if entry.rule.experts:
        return Shard(mpu.get_expert_tensor_parallel_rank(), mpu.get_expert_tensor_parallel_world_size())
    return Shard(mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size())


def load_hf(chunks: Sequence[PolicyModel], folder: HfFolder, layer_spec: str) -> None:
    """Fill this rank's parameters, reading only its slices.

    Raises:
        CheckpointError: a tensor is missing, unused or of another shape, or a parameter has no rule.
    """
    parameters, shape = local_parameters(chunks), chunks[0].shape
    table = entries(weight_map(shape), layer_spec)
    _check_names(shape, table, set(parameters), folder)
    for entry in table:
        parameter = parameters.get(entry.name)
        if parameter is None:
            continue
        value = entry.layout.to_megatron([folder.slice(name) for name in entry.hf_names], shard_of(entry))
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{', '.join(entry.hf_names)} in {folder.path} give {entry.name} the shape {tuple(value.shape)}, "
                f"but its config.json asks for {tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(value)


def _check_names(shape: ModelShape, table: list[Entry], parameters: set[str], folder: HfFolder) -> None:
    known = {entry.name for entry in table}
    if orphans := sorted(parameters - known):
        raise CheckpointError(f"the weight map has no rule for Megatron parameters {orphans[:5]}")
    expected = {name for entry in table for name in entry.hf_names}
    ignored = family(shape.family).ignored(shape)
    if unused := sorted(name for name in folder.names() - expected if not name.startswith(ignored)):
        raise CheckpointError(
            f"{folder.path} holds {len(unused)} tensors that its config.json does not explain: {unused[:5]}",
            "The folder may belong to another model family than its config.json says.",
        )


class HfExporter:
    """Streams the whole model as Hugging Face tensors; every rank takes part and receives every tensor.

    Pipeline stages, expert-parallel and tensor-parallel ranks contribute their shards; one tensor is whole at a time.
    What no rank holds (a vision tower that is not trained) is not streamed.

    Args:
        values: what to stream of each parameter, such as its gradient; by default the parameter itself. Asked for when
            the parameter's turn comes.
    """

    def __init__(
        self,
        chunks: Sequence[PolicyModel],
        layer_spec: str,
        values: Callable[[Tensor], Tensor] = lambda p: p.detach(),
    ) -> None:
        self._parameters, self._values = local_parameters(chunks), values
        held = {name: (tuple(p.shape), p.dtype) for name, p in self._shown()}
        self._stages = _gather_objects(held, mpu.get_pipeline_model_parallel_group())
        experts = _gather_objects({name: m for s in self._stages for name, m in s.items()}, _expert_group())
        self._experts = experts
        self._meta: dict[str, Meta] = {name: meta for names in experts for name, meta in names.items()}
        table = [e for e in entries(weight_map(chunks[0].shape), layer_spec) if e.exported]
        self._table = [e for e in table if e.name in self._meta]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names and tensors in the training dtype. Collective: every rank must consume it to the end."""
        for entry in self._table:
            shard = self._over(mpu.get_pipeline_model_parallel_group(), self._stages, entry.name)
            if entry.rule.experts:
                shard = self._over(_expert_group(), self._experts, entry.name, shard)
            whole = _gather(shard, entry) if entry.layout.sharded else [shard]
            yield from zip(entry.hf_names, entry.layout.to_hf(whole), strict=True)

    def _shown(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self._values(parameter)) for name, parameter in self._parameters.items())

    def _over(
        self, group: dist.ProcessGroup, holders: list[dict[str, Meta]], name: str, held: Tensor | None = None
    ) -> Tensor:
        """The tensor from the first rank of ``group`` that has it; where none has, an empty one of its shape."""
        mine = held
        if held is None and name in self._parameters:
            mine = self._values(self._parameters[name])
        owner = next((rank for rank, names in enumerate(holders) if name in names), None)
        if mine is None or (owner is not None and owner != dist.get_rank(group)):
            shape, dtype = self._meta[name]
            mine = torch.empty(shape, dtype=dtype, device=next(iter(self._parameters.values())).device)
        if owner is not None and len(holders) > 1:
            dist.broadcast(mine, dist.get_global_rank(group, owner), group=group)
        return mine


def _expert_group() -> dist.ProcessGroup:
    return mpu.get_expert_model_parallel_group()


def _gather_objects(mine: dict[str, Meta], group: dist.ProcessGroup) -> list[dict[str, Meta]]:
    found: list[dict[str, Meta]] = [{}] * dist.get_world_size(group)
    dist.all_gather_object(found, mine, group=group)
    return found


def _gather(shard: Tensor, entry: Entry) -> list[Tensor]:
    place = shard_of(entry)
    if place.size == WHOLE.size:
        return [shard]
    group = mpu.get_expert_tensor_parallel_group() if entry.rule.experts else mpu.get_tensor_model_parallel_group()
    shards = [torch.empty_like(shard) for _ in range(place.size)]
    dist.all_gather(shards, shard.contiguous(), group=group)
    return shards
