"""Seconds of a rollout: one engine's share of the completions, prefilled and decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

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

    Lengths that nobody has measured are taken as spread evenly so that their mean is ``average`` and the longest is
    ``completion``: half of the time to the end the batch is as it began, then it thins out. One decoding step reads the
    weights once and the cache of every running sequence.
    """
    tp, usual_prompt = execution.engine_tp, task.usual_prompt
    share = max(1, math.ceil(task.generation / execution.engines))
    kv_bytes = next(t.bytes for t in engine_terms(task, execution, hw) if t.name == "KV cache")
    room = max(1, int(max(kv_bytes, 0) // max(1, kv_bytes_per_token(task, execution) * task.usual)))
    running = max(1, min(share, execution.sequences(task), room))
    passes = math.ceil(share * usual_prompt / PREFILL_TOKENS)
    prefill = share * forward_seconds(task, usual_prompt, hw) / tp + _all_reduces(
        task, execution, hw, passes, share * usual_prompt
    )
    steps, tail = _measured_steps(task, share, running) if task.pace else _assumed_steps(task, share, running)
    decoding = _Decoding(task, execution, hw)
    busy, lonely = steps[0], tail[-1]
    text = (
        f"{sum(each.count for each in steps):,.0f} steps, the first with {running} of {share} sequences at "
        f"{decoding.seconds(busy) * 1e3:.1f} ms, {sum(each.count for each in tail):,.0f} of the tail, the last at "
        f"{decoding.seconds(lonely) * 1e3:.1f} ms{decoding.talk(busy)}; {task.average:,} tokens on average, "
        f"{task.completion:,} at the most"
    )
    decode, ending = (sum(each.count * decoding.seconds(each) for each in part) for part in (steps, tail))
    return [
        Part("prefill", prefill, "tensor cores", f"{share} prompts of {usual_prompt:,} tokens on {tp} GPUs"),
        Part("decode", decode, decoding.bound(busy), text),
        Part("tail", ending, decoding.bound(lonely), "the last sequences of the rollout"),
    ]


@dataclass(frozen=True)
class _Steps:
    """Decoding steps of one kind: how many, with how many sequences of which length."""

    count: float
    running: int
    length: float


def _assumed_steps(task: Task, share: int, running: int) -> tuple[list[_Steps], list[_Steps]]:
    """Steps with a full batch, and of the tail, for lengths that are spread evenly."""
    full = _Steps(share / running * task.average, running, task.usual_prompt + task.average // 2)
    rest = _Steps(max(0.0, task.completion - task.average), max(1, running // 8), task.usual)
    return [full], [rest]


def _measured_steps(task: Task, share: int, running: int) -> tuple[list[_Steps], list[_Steps]]:
    """The same for lengths that a run had: as long as others wait, the batch is full; then the shortest end first."""
    assert task.pace is not None
    lengths, prompt = task.pace.lengths.completions, task.usual_prompt
    full = [_Steps((share / running - 1) * task.average, running, prompt + task.average / 2)]
    thinning = [
        _Steps(longer - shorter, max(1, round(running * (1 - index / len(lengths)))), prompt + (shorter + longer) / 2)
        for index, (shorter, longer) in enumerate(pairwise((0.0, *lengths)))
    ]
    return (
        full + [each for each in thinning if 2 * each.running > running],
        [each for each in thinning if 2 * each.running <= running] or [replace(thinning[-1], count=0.0)],
    )


@dataclass(frozen=True)
class _Decoding:
    """What one decoding step costs."""

    task: Task
    execution: Execution
    hw: Hardware

    def seconds(self, steps: _Steps) -> float:
        gpu, talk, launch = self._costs(steps)
        return max(gpu + talk, launch) + DECODE_HOST

    def bound(self, steps: _Steps) -> str:
        gpu, talk, launch = self._costs(steps)
        costs = {"HBM": gpu, self._link: talk, "host": max(launch, DECODE_HOST)}
        bound = max(costs, key=lambda name: costs[name])
        if bound == "HBM" and self.task.active * steps.running * 2 / self._rate >= gpu:
            return "tensor cores"
        return bound

    def talk(self, steps: _Steps) -> str:
        """In words, how much of a step is talk between ranks."""
        talk = self._costs(steps)[1]
        return f", {talk * 1e3:.1f} of the first all-reduces over {self._link}" if talk else ""

    @property
    def _link(self) -> str:
        return link_of(self.execution, self.hw, self.execution.engine_tp)[1]

    @property
    def _rate(self) -> float:
        return self.hw.bf16_tflops * 1e12 * self.hw.matmul_efficiency * self.execution.engine_tp

    def _costs(self, steps: _Steps) -> tuple[float, float, float]:
        """Seconds of the GPU, of all-reduces, and of the host to start kernels."""
        task, execution, hw = self.task, self.execution, self.hw
        hbm = hw.hbm_gb_per_s * hw.decode_efficiency * 1e9
        gpu = _decode_step(task, execution, steps.running, steps.length, self._rate, hbm)
        talk = _all_reduces(task, execution, hw, 1, steps.running)
        starts = task.shape.layers * EAGER_STARTS + len(task.shape.moe_layers) * EAGER_EXPERTS_STARTS
        return gpu, talk, starts * hw.launch_us * 1e-6 if execution.eager else 0.0


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
