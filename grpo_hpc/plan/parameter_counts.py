"""How many parameters one rank holds, from the weight map's counts and the layout."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grpo_hpc.models.shape import ModelShape
from grpo_hpc.plan.setup import Execution, Task


@dataclass(frozen=True)
class Held:
    """Parameters on one rank of one pipeline stage.

    Attributes:
        dense: cut by tp where they are matrices, whole where they are norms or routers.
        expert: of the routed experts, cut by ep and etp.
    """

    dense: int
    expert: int

    @property
    def total(self) -> int:
        return self.dense + self.expert


def held(task: Task, execution: Execution, stage: int) -> Held:
    """All parameters that a rank of ``stage`` (from 0) holds."""
    c, d, shape = task.counts, execution.degrees, task.shape
    plain, moe = execution.layers_on(shape, stage)
    dense = (plain + moe) * (_cut(c.attention, d.tp) + c.norms) + plain * _cut(c.mlp, d.tp)
    dense += moe * (c.router + _cut(c.shared_expert, d.tp))
    if stage == 0:
        dense += _cut(c.embedding, d.tp) + c.vision
    if stage == d.pp - 1:
        dense += c.final_norm
        # a tied output matrix is the embedding again, and lies on the last stage as a copy when that is not the first
        dense += _cut(c.output, d.tp) if c.output else (_cut(c.embedding, d.tp) if d.pp > 1 else 0)
    count = shape.experts.count if shape.experts else 0
    return Held(dense, moe * (count // d.ep) * _cut(c.expert, d.etp))


def trained(task: Task, execution: Execution, stage: int) -> Held:
    """Parameters with a gradient: all of them, or the adapters (LoRA on all linear layers)."""
    if not task.lora_rank:
        return held(task, execution, stage)
    d, shape, r = execution.degrees, task.shape, task.lora_rank
    plain, moe = execution.layers_on(shape, stage)
    attention = _attention_adapters(shape, r, d.tp)
    mlp = _column(shape.hidden, 2 * shape.ffn, r, d.tp) + _row(shape.ffn, shape.hidden, r, d.tp)
    dense = (plain + moe) * attention + plain * mlp
    if shape.experts is None:
        return Held(dense, 0)
    e = shape.experts
    if e.shared_ffn:
        dense += moe * (_column(shape.hidden, 2 * e.shared_ffn, r, d.tp) + _row(e.shared_ffn, shape.hidden, r, d.tp))
    expert = _column(shape.hidden, 2 * e.ffn, r, d.etp) + _row(e.ffn, shape.hidden, r, d.etp)
    return Held(dense, moe * (e.count // d.ep) * expert)


def _attention_adapters(shape: ModelShape, rank: int, ranks: int) -> int:
    """Of one layer; latent attention's down projections are whole on every rank, as TransformerEngine has them."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if shape.mla is None:
        return _column(shape.hidden, queries + 2 * keys, rank, ranks) + _row(queries, shape.hidden, rank, ranks)
    m = shape.mla
    found = _column(shape.hidden, m.kv_rank + m.rope_dim, rank, 1)
    found += _column(m.kv_rank, shape.heads * (m.nope_dim + m.v_dim), rank, ranks)
    found += _row(shape.heads * m.v_dim, shape.hidden, rank, ranks)
    if m.q_rank is None:
        return found + _column(shape.hidden, queries, rank, ranks)
    return found + _column(shape.hidden, m.q_rank, rank, 1) + _column(m.q_rank, queries, rank, ranks)


def _cut(parameters: int, ranks: int) -> int:
    return math.ceil(parameters / ranks)


def _column(inside: int, outside: int, rank: int, ranks: int) -> int:
    """Adapter of a column-parallel layer: A whole, B cut."""
    return rank * (inside + _cut(outside, ranks))


def _row(inside: int, outside: int, rank: int, ranks: int) -> int:
    """Adapter of a row-parallel layer: A cut, B whole."""
    return rank * (_cut(inside, ranks) + outside)
