"""Hugging Face -> Megatron: the plan."""

from __future__ import annotations

from collections.abc import Iterator

from grpo_hpc.checkpoint.copies import Job
from grpo_hpc.checkpoint.folders import COMPANIONS, Folder
from grpo_hpc.checkpoint.megatron_folder import common_bytes, config_bytes
from grpo_hpc.checkpoint.naming import Parallel, extra_states, is_uniform, layers_and_experts, slots
from grpo_hpc.checkpoint.planning import MegatronWriter, about, in_parts, model_dtype, placed
from grpo_hpc.checkpoint.run import Plan
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.read_shape import read_config, read_shape
from grpo_hpc.models.on_disk.companions import companions
from grpo_hpc.models.on_disk.model_folder import check_model, left_out
from grpo_hpc.models.on_disk.stored import ITEMSIZE, Block, Stored
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import EXPERT, LAYER, Rule


def plan_to_megatron(source: Folder, parallel: Parallel) -> Plan:
    """How a Hugging Face folder becomes a Megatron checkpoint cut for ``parallel``.

    Raises:
        CheckpointError: the tensors are not those that the configuration describes, or the layout does not fit.
    """
    shape = read_shape(source.path)
    parallel.require(shape)
    dtype = check_tensors(source, shape)
    writer = MegatronWriter()
    for rule in weight_map(shape):
        if not rule.repeats:
            for layer, expert in layers_and_experts(rule):
                writer.jobs += _jobs(writer, source, shape, parallel, rule, layer, expert)
    files = companions(source.path, dtype, COMPANIONS + "/")
    files |= {"metadata.json": config_bytes(), "common.pt": common_bytes()}
    said = about(source, "megatron", shape, parallel) | {"left_out": sorted(left_out(source.tensors, shape))}
    return writer.plan(said, extra_states(shape), files, source.checks())


def check_tensors(source: Folder, shape: ModelShape) -> str:
    """Compare a Hugging Face folder with what its configuration describes, and return its dtype.

    Raises:
        CheckpointError: a tensor is missing, unexplained, or of another shape or dtype.
    """
    check_model(source.path, source.tensors, shape)
    names = {name for rule in weight_map(shape) for at in layers_and_experts(rule) for name in hf_names(rule, *at)}
    return model_dtype((source.tensors[name] for name in sorted(names)), shape, read_config(source.path))


def hf_names(rule: Rule, layer: int, expert: int) -> list[str]:
    return [name.replace(LAYER, str(layer)).replace(EXPERT, str(expert)) for name in rule.hf]


def _jobs(
    writer: MegatronWriter, source: Folder, shape: ModelShape, parallel: Parallel, rule: Rule, layer: int, expert: int
) -> Iterator[Job]:
    """The chunks of one parameter. Ranks that take columns of the same rows share a job, so these are read once."""
    seen = zip(hf_names(rule, layer, expert), rule.layout.views, strict=True)
    tensors = [source.tensors[name].viewed(view) for name, view in seen]
    dtype, shards = tensors[0].dtype, parallel.shards(rule)
    whole = rule.layout.shape(shards[0].size)
    for slot in slots(rule, shape, layer, expert, is_uniform(shape)):
        together = []
        for shard in shards:
            file = parallel.file(rule, layer, expert, shard.rank, shape)
            for box in rule.layout.boxes(shard):
                tail = tuple(part.stop - part.start for part in box[1:])
                width = ITEMSIZE[dtype]
                for size in tail:
                    width *= size
                for rows in in_parts(box[0], width):
                    start = (*slot.prefix, rows.start, *(part.start for part in box[1:]))
                    size = (*(1,) * len(slot.prefix), rows.stop - rows.start, *tail)
                    columns = box[1] if len(box) > 1 else None
                    blocks = list(_blocks(rule, tensors, rows, columns))
                    full, depth = (*slot.leading, *whole), len(slot.prefix)
                    target = writer.target(slot.key, dtype, full, start, size, file, blocks, depth=depth)
                    together.append(target)
        if rule.layout.axis == 1:
            by_rows: dict[int, list[int]] = {}
            for number in range(len(together)):
                by_rows.setdefault(number % (len(together) // len(shards)), []).append(number)
            yield from (Job(tuple(together[n] for n in numbers)) for numbers in by_rows.values())
        else:
            yield from (Job((target,)) for target in together)


def _blocks(rule: Rule, tensors: list[Stored], rows: slice, columns: slice | None) -> Iterator[Block]:
    """What fills these rows of a parameter."""
    at = 0
    for part in rule.layout.rows(rows.start, rows.stop):
        if part.source is not None:
            yield from placed(tensors[part.source].blocks((), slice(part.start, part.stop), columns), at)
        at += len(part)
