"""Bytes that the forward pass keeps for the backward pass, per token and layer, with fused attention.

After Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198), extended
by gated feed-forwards, grouped queries, query and key norms, latent attention and experts, without the score matrix,
which no attention kernel in use keeps.

Shapes: h hidden, q and k widths of queries and keys, f feed-forward width, w bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from grpo_hpc.plan.setup import Execution, Task

LOGITS_CHUNK = 1024  # scored tokens whose logits exist at a time (algo/logprob.py)


@dataclass(frozen=True)
class Kept:
    """Bytes of one token in one layer of each kind, on one tensor-parallel rank.

    Attributes:
        entry: the layer's input alone, what full recompute keeps.
        dense, moe: what a layer keeps, after selective recompute.
        whole: what the larger kind of layer keeps without any recompute.
    """

    entry: float
    dense: float
    moe: float
    whole: float


def kept(task: Task, execution: Execution) -> Kept:
    """What each kind of layer keeps of one token."""
    again = set(execution.recompute_modules)
    entry = task.shape.hidden * task.width / _sequence_cut(execution)
    attention, mlp, moe = _attention(task, execution), _mlp(task, execution), _moe(task, execution)
    norms = 2 * entry

    def layer(feed_forward: dict[str, float], without: set[str]) -> float:
        parts = {"residuals": 2 * entry, "layernorm": norms, **attention, **feed_forward}
        return sum(size for name, size in parts.items() if name not in without)

    whole = max(layer(mlp, set()), layer(moe, set()) if task.shape.experts else 0)
    moe_again = again | ({"dispatch", "moe_act"} if "moe" in again else set())
    return Kept(entry, layer(mlp, again), layer(moe, moe_again), whole)


def _sequence_cut(execution: Execution) -> int:
    return execution.degrees.tp if execution.sequence_parallel else 1


def _attention(task: Task, execution: Execution) -> dict[str, float]:
    s, w, tp = task.shape, task.width, execution.degrees.tp
    if s.mla:
        m = s.mla
        heads = s.heads * (4 * s.head_dim + m.v_dim)  # queries and keys before and after rotation, values
        compressed = (m.q_rank or 0) + m.kv_rank + m.rope_dim
        return {"qkv": heads * w / tp + 2 * compressed * w, "core_attn": s.heads * (m.v_dim * w + 4) / tp}
    q, k = s.heads * s.head_dim, s.kv_heads * s.head_dim
    rotated = q + k
    # a norm of each head keeps what it is given, but the rotation after it keeps nothing, so its output goes
    normed = q + k if s.qk_norm == "token" else 0
    return {"qkv": (q + 2 * k + rotated + normed) * w / tp, "core_attn": (q * w + 4 * s.heads) / tp}


def _mlp(task: Task, execution: Execution) -> dict[str, float]:
    """Gate and up, and their product."""
    return {"mlp": 3 * task.shape.ffn * task.width / execution.degrees.tp}


def _moe(task: Task, execution: Execution) -> dict[str, float]:
    """A token's copies at its experts; on average every rank serves as many as it sends.

    Their outputs are not kept: the router's probabilities are multiplied with what the second matrix is given.
    """
    e, d, w, h = task.shape.experts, execution.degrees, task.width, task.shape.hidden
    if e is None:
        return {}
    copies = e.topk * d.etp / d.tp
    shared = 3 * e.shared_ffn * w / d.tp
    return {
        "router": 2 * e.count * 4 / _sequence_cut(execution),
        "dispatch": copies * (h + 2 * e.ffn / d.etp) * w,
        "moe_act": copies * e.ffn / d.etp * w,
        "shared_experts": shared,
    }


def in_flight(execution: Execution, stage: int, micro_batches: int) -> float:
    """Micro-batches whose activations a stage holds at the most, in units of its whole layers.

    1F1B holds one per stage behind it and its own; interleaving adds the warm-up of the further chunks (Narayanan et
    al., arXiv 2104.04473, section 2.2).
    """
    d = execution.degrees
    if d.vpp == 1:
        return min(micro_batches, d.pp - stage)
    chunks = min(micro_batches * d.vpp, 2 * (d.pp - stage - 1) + (d.vpp - 1) * d.pp + 1)
    return chunks / d.vpp


def stage_bytes(task: Task, execution: Execution, stage: int, tokens: int) -> float:
    """Bytes that one micro-batch of ``tokens`` (on one context-parallel rank) keeps on a stage."""
    size = kept(task, execution)
    if execution.recompute != "full":
        plain, moe = execution.layers_on(task.shape, stage)
        return tokens * (plain * size.dense + moe * size.moe)
    layers = execution.stage_layers(task.shape.layers)[stage]
    again = min(execution.block_layers or len(layers), len(layers))
    moe = len(set(task.shape.moe_layers).intersection(layers[again:]))
    rest = (len(layers) - again - moe) * size.dense + moe * size.moe
    return tokens * (math.ceil(again / execution.group_layers) * size.entry + rest)
