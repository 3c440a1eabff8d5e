"""Moving weights between Hugging Face tensors and the Megatron model on these ranks, by the family's weight map."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from grpo_hpc.control import Control
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.hf_folder import HfFolder
from grpo_hpc.models.layouts import Shard
from grpo_hpc.models.on_disk.model_folder import check_model
from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.models.transport import ToEveryRank, Transport
from grpo_hpc.models.weight_map import Entry, entries

TO_EVERY_RANK = ToEveryRank()

Meta = tuple[tuple[int, ...], torch.dtype]

# the number of an expert on its rank
_EXPERT = re.compile(r"(?<=\.mlp\.experts\.local_experts\.)\d+(?=\.)")

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
    return expert_place() if entry.rule.experts else dense_place()


def expert_place() -> Shard:
    """This rank's place among those that share an expert."""
    return Shard(mpu.get_expert_tensor_parallel_rank(), mpu.get_expert_tensor_parallel_world_size())


def dense_place() -> Shard:
    """This rank's place among those that share a layer."""
    return Shard(mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size())


def load_hf(chunks: Sequence[PolicyModel], folder: HfFolder, layer_spec: str) -> None:
    """Fill this rank's parameters; collective.

    Data-parallel ranks hold the same: each of them reads a part, of about as many bytes, and hands it to the others.

    Raises:
        CheckpointError: on every rank: a tensor is missing, unused or of another shape, or a parameter has no rule.
    """
    parameters, shape = local_parameters(chunks), chunks[0].shape
    table = entries(weight_map(shape), layer_spec)
    _require_rules(table, set(parameters))
    check_model(folder.path, folder.tensors, shape, text_only=True)
    held = [entry for entry in table if entry.name in parameters]
    for entry, reader in zip(held, _readers(held, parameters), strict=True):
        parameter, group = parameters[entry.name].detach(), _replicas(entry)
        if group.rank() == reader:
            parameter.copy_(entry.layout.to_megatron([folder.slice(name) for name in entry.hf_names], shard_of(entry)))
        if group.size() > 1:
            dist.broadcast(parameter, group=group, group_src=reader)


def _readers(held: list[Entry], parameters: Mapping[str, Tensor]) -> Iterator[int]:
    """Who reads each parameter, out of those that hold it: whoever has read the least so far. They all agree."""
    read: dict[bool, list[int]] = {}
    for entry in held:
        so_far = read.setdefault(entry.rule.experts > 0, [0] * _replicas(entry).size())
        reader = so_far.index(min(so_far))
        so_far[reader] += parameters[entry.name].nbytes
        yield reader


def _replicas(entry: Entry) -> dist.ProcessGroup:
    """The ranks that hold the same part of the parameter."""
    if entry.rule.experts:
        return mpu.get_expert_data_parallel_group()
    return mpu.get_data_parallel_group(with_context_parallel=True)


def _require_rules(table: list[Entry], parameters: set[str]) -> None:
    if orphans := sorted(parameters - {entry.name for entry in table}):
        raise CheckpointError(f"the weight map has no rule for Megatron parameters {orphans[:5]}")


class HfExporter:
    """Streams the whole model as Hugging Face tensors to every rank, or to the first; every rank takes part.

    Pipeline stages, expert-parallel and tensor-parallel ranks contribute their shards. Parameters of one layer travel
    together in buckets of bounded size, so no rank ever holds more of the whole model than one bucket. What every rank
    has whole does not travel: it is streamed from where it lies. What no rank holds (a vision tower that is not
    trained) is not streamed.

    Args:
        control: tells the ranks who holds what.
        values: what to stream of each parameter, such as its gradient; by default the parameter itself. Asked for when
            the parameter's turn comes.
        bucket_bytes: most that is whole at a time, where it is more than one parameter.
    """

    def __init__(
        self,
        chunks: Sequence[PolicyModel],
        layer_spec: str,
        control: Control,
        values: Callable[[Tensor], Tensor] = lambda p: p.detach(),
        bucket_bytes: int = 1 << 29,
    ) -> None:
        self._parameters, self._values, self._bucket_bytes = local_parameters(chunks), values, bucket_bytes
        held = {name: (tuple(p.shape), p.dtype) for name, p in self._shown()}
        self._stages, self._experts = _holders(held, control)
        self._meta: dict[str, Meta] = {name: meta for names in self._experts for name, meta in names.items()}
        table = [e for e in entries(weight_map(chunks[0].shape), layer_spec) if e.exported]
        self._table = [e for e in table if e.name in self._meta]

    def tensors(self, to: Transport = TO_EVERY_RANK) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names and tensors in the training dtype; none on a rank that ``to`` leaves out.

        Collective: every rank must consume it to the end.
        """
        for bucket in self.buckets:
            first = bucket[0]
            if not to.takes_part(first.rule.experts > 0):
                continue
            if first.name not in self._travelling:
                yield from self._from_where_it_lies(first, to)
                continue
            shards = self._shards(bucket, to)
            if not shards:
                continue
            sizes = [math.prod(self._meta[entry.name][0]) for entry in bucket]
            parts = [shard.split(sizes) for shard in shards]
            del shards
            for number, entry in enumerate(bucket):
                shape = self._meta[entry.name][0]
                own = [part[number].view(shape) for part in parts]
                yield from zip(entry.hf_names, entry.layout.to_hf(own), strict=True)

    @cached_property
    def buckets(self) -> list[list[Entry]]:
        """The parameters in their order, those together that travel together; the same on every rank."""
        return list(self._together())

    def _together(self) -> Iterator[list[Entry]]:
        for _, run in groupby(self._table, key=self._route):
            bucket: list[Entry] = []
            size = 0
            for entry in run:
                shape, dtype = self._meta[entry.name]
                own = math.prod(shape) * dtype.itemsize * (shard_of(entry).size if entry.layout.sharded else 1)
                if bucket and size + own > self._bucket_bytes:
                    yield bucket
                    bucket, size = [], 0
                bucket.append(entry)
                size += own
            yield bucket

    def _route(self, entry: Entry) -> tuple[object, ...]:
        """What parameters must have in common to travel together: who holds them, and how they are cut."""
        place = entry.layer if entry.rule.per_layer and entry.name in self._travelling else entry.name
        holder = _first_with(entry.name, self._experts) if entry.rule.experts else None
        return place, entry.rule.part == "vision", holder, entry.layout.sharded, self._meta[entry.name][1]

    @cached_property
    def _travelling(self) -> frozenset[str]:
        return frozenset(entry.name for entry in self._table if self._travels(entry))

    def _travels(self, entry: Entry) -> bool:
        """Whether some rank has only a part of the parameter, or nothing of it."""
        groups = [mpu.get_pipeline_model_parallel_group(), *([_expert_group()] if entry.rule.experts else [])]
        return any(g.size() > 1 for g in groups) or (entry.layout.sharded and shard_of(entry).size > 1)

    def _from_where_it_lies(self, entry: Entry, to: Transport) -> Iterator[tuple[str, Tensor]]:
        """A parameter that this rank has whole."""
        if to.goes_on(_sharers(entry)):
            tensors = entry.layout.to_hf([self._values(self._parameters[entry.name])])
            yield from zip(entry.hf_names, tensors, strict=True)

    def _shown(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self._values(parameter)) for name, parameter in self._parameters.items())

    def _shards(self, bucket: list[Entry], to: Transport) -> list[Tensor]:
        """All ranks' shards of the bucket where ``to`` takes them, else none: each [sum of its parameters' sizes]."""
        entry, experts = bucket[0], bucket[0].rule.experts
        sharers = _sharers(entry)
        if not entry.layout.sharded and not to.goes_on(sharers):
            return []
        flat = self._own(bucket)
        way = [(self._stages, mpu.get_pipeline_model_parallel_group())]
        if experts:
            way.append((self._experts, _expert_group()))
        for holders, group in way:
            flat = to.pass_on(flat, _first_with(entry.name, holders), partial(self._empty, bucket), group)
            if not to.goes_on(group):
                return []
        if flat is None:
            raise ValueError(f"no rank sent {entry.name}")
        return to.join(flat, sharers) if entry.layout.sharded and sharers.size() > 1 else [flat]

    def _own(self, bucket: list[Entry]) -> Tensor | None:
        """This rank's shards of the bucket, one behind the other; None if it has none."""
        if bucket[0].name not in self._parameters:
            return None
        values = [self._values(self._parameters[entry.name]).flatten() for entry in bucket]
        return values[0] if len(values) == 1 else torch.cat(values)

    def _empty(self, bucket: list[Entry]) -> Tensor:
        size = sum(math.prod(self._meta[entry.name][0]) for entry in bucket)
        device = next(iter(self._parameters.values())).device
        return torch.empty(size, dtype=self._meta[bucket[0].name][1], device=device)


def _first_with(name: str, holders: list[dict[str, Meta]]) -> int | None:
    return next((rank for rank, names in enumerate(holders) if name in names), None)


def _sharers(entry: Entry) -> dist.ProcessGroup:
    """The ranks among which tensor parallelism cuts the parameter."""
    return mpu.get_expert_tensor_parallel_group() if entry.rule.experts else mpu.get_tensor_model_parallel_group()


def _expert_group() -> dist.ProcessGroup:
    return mpu.get_expert_model_parallel_group()


def _holders(held: dict[str, Meta], control: Control) -> tuple[list[dict[str, Meta]], list[dict[str, Meta]]]:
    """What each pipeline stage holds that has the same experts as this rank, and what all stages with each part of the
    experts hold together. One of the ranks that hold the same speaks for all of them.
    """
    stage, part = mpu.get_pipeline_model_parallel_rank(), mpu.get_expert_model_parallel_rank()
    speaks = mpu.get_expert_tensor_parallel_rank() == mpu.get_expert_data_parallel_rank() == 0
    told = control.gather((stage, part, held) if speaks else None, "the names of all parameters")
    by_place = {(stage, part): names for stage, part, names in filter(None, told)}
    stages = range(mpu.get_pipeline_model_parallel_world_size())
    parts = range(mpu.get_expert_model_parallel_world_size())
    together = [{name: meta for s in stages for name, meta in by_place[s, p].items()} for p in parts]
    return [by_place[s, part] for s in stages], together
