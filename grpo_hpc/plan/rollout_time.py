"""Seconds of a rollout: one engine's share of the completions, prefilled and decoded."""

from __future__ import annotations

import math

from grpo_hpc.plan.hardware import Hardware
from grpo_hpc.plan.memory import engine_terms, kv_bytes_per_token
from grpo_hpc.plan.rates import Part, forward_seconds, link_of
from grpo_hpc.plan.setup import Execution, Task

# What the host needs where no CUDA graph holds the kernels, in times that it takes to start one (see train_time)
EAGER_STARTS = 76  # one token of a layer
EAGER_EXPERTS_STARTS = 63  # and so many more for a layer with experts
DECODE_HOST = 1.5e-3  # seconds of scheduling and sampling for each token that an engine makes
# Seconds of an all-reduce before its bytes count: 18.7 to 20.4 us for 32 to 512 KiB on 8 GPUs that reach 300 GB/s, so
# over NVLink (Mooncake pull request 3484); over InfiniBand 63 to 71 us for a few bytes on 32 nodes of 8 A100 (NCCL
# issue 652). Not measured with this trainer.
ALL_REDUCE = {"NVLink": 20e-6, "NIC": 65e-6}
PREFILL_TOKENS = 8192  # that an engine reads in one pass


def rollout(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
    """Prefill and decoding of one engine's share of the completions.

    Lengths are taken as spread evenly so that their mean is ``average`` and the longest is ``completion``: half of the
    time to the end the batch is as it began, then it thins out. One decoding step reads the weights once and the cache
    of every running sequence.
    """
    tp = execution.engine_tp
    share = max(1, math.ceil(task.generation / execution.engines))
    kv_bytes = next(t.bytes for t in engine_terms(task, execution, hw) if t.name == "KV cache")
    room = max(1, int(max(kv_bytes, 0) // max(1, kv_bytes_per_token(task, execution) * task.usual)))
    running = max(1, min(share, execution.sequences(task), room))
    rate, hbm = hw.bf16_tflops * 1e12 * hw.matmul_efficiency * tp, hw.hbm_gb_per_s * hw.decode_efficiency * 1e9
    passes = math.ceil(share * task.prompt / PREFILL_TOKENS)
    prefill = share * forward_seconds(task, task.prompt, hw) / tp + _all_reduces(
        task, execution, hw, passes, share * task.prompt
    )
    starts = task.shape.layers * EAGER_STARTS + len(task.shape.moe_layers) * EAGER_EXPERTS_STARTS
    launch = starts * hw.launch_us * 1e-6 if execution.eager else 0.0
    gpu = _decode_step(task, execution, running, task.prompt + task.average // 2, rate, hbm)
    gpu_tail = _decode_step(task, execution, max(1, running // 8), task.usual, rate, hbm)
    talk, talk_tail = (_all_reduces(task, execution, hw, 1, n) for n in (running, max(1, running // 8)))
    busy = max(gpu + talk, launch) + DECODE_HOST
    lonely = max(gpu_tail + talk_tail, launch) + DECODE_HOST
    waves = share / running
    full = waves * task.average
    tail = max(0.0, task.completion - task.average)
    link = link_of(execution, hw, tp)[1]
    talk_text = f", {talk * 1e3:.1f} of them all-reduces over {link}" if talk else ""
    text = (
        f"{full:,.0f} steps with {running} of {share} sequences at {busy * 1e3:.1f} ms, {tail:,.0f} of the tail at "
        f"{lonely * 1e3:.1f} ms{talk_text}; {task.average:,} tokens on average, {task.completion:,} at the most"
    )
    costs = {"HBM": gpu, link: talk, "host": max(launch, DECODE_HOST)}
    bound = max(costs, key=lambda name: costs[name])
    if bound == "HBM" and task.active * running * 2 / rate >= gpu:
        bound = "tensor cores"
    costs_tail = costs | {"HBM": gpu_tail, link: talk_tail}
    bound_tail = max(costs_tail, key=lambda name: costs_tail[name])
    return [
        Part("prefill", prefill, "tensor cores", f"{share} prompts of {task.prompt:,} tokens on {tp} GPUs"),
        Part("decode", full * busy, bound, text),
        Part("tail", tail * lonely, bound_tail, "the last sequences of the rollout"),
    ]


def _decode_step(task: Task, execution: Execution, running: int, length: float, rate: float, hbm: float) -> float:
    """Seconds of one token for ``running`` sequences of ``length`` tokens."""
    s, tp = task.shape, execution.engine_tp
    read: float = task.parameters - task.counts.embedding
    if s.experts:
        touched = 1 - (1 - s.experts.topk / s.experts.count) ** running
        experts = len(s.moe_layers) * s.experts.count * task.counts.expert
        read += experts * (2 * touched - 1)  # those that are visited, at half the rate
    weights = read * task.engine_width / tp / hbm
    cache = running * length * kv_bytes_per_token(task, execution) / hbm
    work = 2.0 * task.active * running / rate
    return max(weights, work) + cache


def _all_reduces(task: Task, execution: Execution, hw: Hardware, passes: int, tokens: int) -> float:
    """Seconds that an engine's ranks spend on adding up what each of them has, twice a layer in every pass."""
    tp = execution.engine_tp
    if tp == 1:
        return 0.0
    rate, link = link_of(execution, hw, tp)
    size = 2 * (tp - 1) / tp * tokens * task.shape.hidden * task.engine_width
    return 2 * task.shape.layers * (passes * ALL_REDUCE[link] + size / rate)
