"""Megatron -> Megatron: another layout, with optimizer state, or with an adapter merged: the plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from grpo_hpc.checkpoint.copies import Add, Job, Target
from grpo_hpc.checkpoint.folders import COMPANIONS, Folder
from grpo_hpc.checkpoint.naming import Parallel, is_state, layers_and_experts, root_of, slots
from grpo_hpc.checkpoint.planning import MegatronWriter, about, in_parts
from grpo_hpc.checkpoint.run import Plan
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.on_disk.companions import companions
from grpo_hpc.models.on_disk.stored import Size, Stored
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule

# (what is cut, rule, layer, expert, rows, columns of the whole parameter) -> what is added to them
Adds = Callable[[Stored, Rule, int, int, slice, slice | None], Sequence[Add]]

_RANK_BOUND = "optimizer.distributed."


def plan_reshard(source: Folder, parallel: Parallel) -> Plan:
    """The same tensors, optimizer state included, cut for another layout.

    Raises:
        CheckpointError: the optimizer state is bound to the ranks that wrote it, or a tensor is not explained.
    """
    bound = next((name for name in [*source.tensors, *source.objects] if name.startswith(_RANK_BOUND)), None)
    if bound:
        raise CheckpointError(
            f"the optimizer state of {source.path} is bound to the layout that wrote it ({bound!r})",
            "Resume once in that layout with checkpoint.reshardable: true in the run file, and reshard what it saves.",
        )
    plan = recut(source, parallel, set(source.tensors))
    return _as_training(plan, source) if (source.path.parent / "state.json").exists() else plan


def recut(source: Folder, parallel: Parallel, names: set[str], adds: Adds = lambda *_: ()) -> Plan:
    """Tensors ``names`` of a Megatron checkpoint, cut for ``parallel``."""
    if source.config is None:
        raise CheckpointError(f"{source.path} has no Hugging Face configuration", "Name its folder with --hf-config.")
    shape = read_shape(source.config)
    parallel.require(shape)
    writer, left = MegatronWriter(), set(names)
    for rule in weight_map(shape):
        if not rule.repeats:
            left -= _cut(writer, source, shape, parallel, rule, names, adds)
    if left:
        raise CheckpointError(f"the configuration does not explain these tensors of {source.path}: {sorted(left)[:5]}")
    files = {name: (source.path / name).read_bytes() for name in ("common.pt", "metadata.json")}
    some = next(iter(source.tensors.values()))
    files |= companions(source.config, some.dtype, COMPANIONS + "/")
    first = parallel.file(next(rule for rule in weight_map(shape)), 0, 0, 0, shape)
    for name, (file, offset, length) in source.objects.items():
        writer.raw(name, first, file, offset, length)
    said = about(source, "megatron", shape, parallel)
    return writer.plan(said, list(source.objects), files, source.checks())


def _cut(
    writer: MegatronWriter,
    source: Folder,
    shape: ModelShape,
    parallel: Parallel,
    rule: Rule,
    names: set[str],
    adds: Adds,
) -> set[str]:
    """All chunks of one row of the weight map, of the model and of everything that an optimizer keeps beside it.

    Returns:
        the tensors that it explains.
    """
    cut: set[tuple[str, Size]] = set()
    for layer, expert in layers_and_experts(rule):
        for uniform in (True, False):
            for slot in slots(rule, shape, layer, expert, uniform):
                for stored in _named(source, slot.key):
                    fits = len(stored.shape) == len(slot.prefix) + len(rule.layout.shape())
                    if stored.name not in names or not fits or (stored.name, slot.prefix) in cut:
                        continue
                    cut.add((stored.name, slot.prefix))
                    add = adds if not is_state(stored.name) else lambda *_: ()
                    writer.jobs += _chunks(writer, stored, slot.prefix, shape, parallel, rule, (layer, expert), add)
    return {name for name, _ in cut}


def _named(source: Folder, key: str) -> Iterator[Stored]:
    """The tensor of that name, and an optimizer's of the same shape."""
    for root in _roots(source):
        if root + key in source.tensors:
            yield source.tensors[root + key]


def _roots(source: Folder) -> list[str]:
    embedding, own = "embedding.word_embeddings.weight", root_of(source.tensors)
    return [own, *sorted({n.removesuffix(embedding) for n in source.tensors if n.endswith(embedding)} - {own})]


def _chunks(
    writer: MegatronWriter,
    stored: Stored,
    prefix: Size,
    shape: ModelShape,
    parallel: Parallel,
    rule: Rule,
    at: tuple[int, int],
    adds: Adds,
) -> Iterator[Job]:
    shards = parallel.shards(rule)
    whole, depth = rule.layout.shape(shards[0].size), len(prefix)
    for shard in shards:
        file = parallel.file(rule, *at, shard.rank, shape)
        for box in rule.layout.boxes(shard):
            tail = tuple(part.stop - part.start for part in box[1:])
            width = Stored("", stored.dtype, tail, ()).nbytes
            for rows in in_parts(box[0], width):
                start = (*prefix, rows.start, *(part.start for part in box[1:]))
                size = (*(1,) * depth, rows.stop - rows.start, *tail)
                columns = box[1] if len(box) > 1 else None
                there = slice(rows.start, min(rows.stop, stored.shape[depth]))  # padding may have been shorter
                blocks = list(stored.blocks(prefix, there, columns)) if there.start < there.stop else []
                leading = stored.shape[:depth]
                added = tuple(adds(stored, rule, *at, rows, columns))
                full, kind = (*leading, *whole), stored.dtype
                yield Job((writer.target(stored.name, kind, full, start, size, file, blocks, added, depth=depth),))


def _as_training(plan: Plan, source: Folder) -> Plan:
    """The plan one folder down, beside the state of the trainer: what ``resume`` expects."""
    inner = source.path.name + "/"

    def down(target: Target) -> Target:
        return Target(**(vars(target) | {"file": Path(inner) / target.file}))

    state = (source.path.parent / "state.json").read_bytes()
    left = [(f"rollout/{path.name}", None, path.read_bytes()) for path in (source.path.parent / "rollout").glob("*")]
    return Plan(
        {inner + name: size for name, size in plan.sizes.items()},
        tuple(Job(tuple(down(target) for target in job.targets), job.checks) for job in plan.jobs),
        (
            *((inner + name, offset, content) for name, offset, content in plan.small),
            ("state.json", None, state),
            *left,
        ),
        plan.about | {"step": json.loads(state)["step"]},
    )
