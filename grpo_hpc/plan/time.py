"""Seconds of one rollout and the optimizer steps made from it, phase by phase, each part with what bounds it.

Rates come from the hardware profile. A part's time is what its slowest resource needs; parts of a phase follow one
after the other unless a run overlaps them. No total is scaled to fit a measurement: formulas name what is assumed, and
constants below that were measured say on what.

Shapes: T tokens of a micro-batch on one context-parallel rank, h hidden size, N parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from grpo_hpc.plan.hardware import Hardware
from grpo_hpc.plan.memory import engine_terms, kv_bytes_per_token
from grpo_hpc.plan.parameters import held, trained
from grpo_hpc.plan.setup import Execution, Task

PHASES = ("sync", "rollout", "logprob", "train", "offload")
# What the host needs for a layer, in times that it takes to start a kernel: some forty are started, and the Python
# around them takes far longer. From runs beside H200s, docs/benchmarks/planner.md, with small models and micro-batches.
LAYER_STARTS = 215  # a forward pass of training
COLLECTIVE_STARTS = 22  # and for each of its collectives
EXPERT_STARTS = 2.8  # and for each expert that the rank holds
EAGER_STARTS = 76  # one token of the engine where no CUDA graph holds the kernels
EAGER_EXPERTS_STARTS = 63  # and so many more for a layer with experts
DECODE_HOST = 1.5e-3  # seconds of scheduling and sampling for each token that an engine makes
# Seconds of an all-reduce before its bytes count: over NVLink 18.7 to 20.4 us for 32 to 512 KiB (Mooncake pull request
# 3484), over InfiniBand 63 to 71 us for a few bytes on 32 nodes (NCCL issue 652). Not measured with this trainer.
ALL_REDUCE = {"NVLink": 20e-6, "NIC": 65e-6}
PREFILL_TOKENS = 8192  # that an engine reads in one pass
SYNC_CHECK = 0.01  # seconds for hashes of sampled tensors, whatever the size
WAKE = 0.2  # seconds to put the engine to sleep and wake it, and to give back what is cached
SYNC_CALL = 35e-6  # seconds to hand one tensor to the engine
SYNC_EXPERT_CALL = 22e-6  # an expert's
SYNC_RELOAD = 0.2e-3  # either, where vLLM reloads layer by layer, as it does with latent attention
SYNC_MERGE = 2.2e-3  # and to compute a layer's matrices with their adapters, from 36 layers beside an H200
SYNC_SHARE = 0.25  # share of the device's copy rate that conversion and loading of tensors reach
ELEMENTWISE = 24  # bytes of hidden states that norms, residuals and rotations move per token, width and pass


@dataclass(frozen=True)
class Part:
    """One part of a phase.

    Attributes:
        bound: ``tensor cores``, ``HBM``, ``NVLink``, ``NIC``, ``PCIe`` or ``host``.
        formula: what it is made of, with numbers and assumptions.
    """

    name: str
    seconds: float
    bound: str
    formula: str


@dataclass(frozen=True)
class Phase:
    """One phase of a rollout's cycle, over all its optimizer steps."""

    name: str
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def bound(self) -> str:
        """What bounds the longest part."""
        return max(self.parts, key=lambda part: part.seconds).bound if self.parts else "-"


@dataclass(frozen=True)
class Times:
    """A whole cycle: one rollout and the optimizer steps made from it.

    Attributes:
        tokens: prompt and completion tokens of the rollout, at average length.
        mfu: share of the data sheet's matrix rate that the train phase uses, recomputation not counted.
    """

    phases: tuple[Phase, ...]
    steps: int
    tokens: int
    gpus: int
    mfu: float

    @property
    def cycle(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def step(self) -> float:
        """Seconds of a step, its share of the rollout included."""
        return self.cycle / self.steps

    @property
    def rate(self) -> float:
        """Tokens per second and GPU, over the whole cycle."""
        return self.tokens / self.cycle / self.gpus


def estimate(task: Task, execution: Execution, hardware: Hardware) -> Times:
    """The time of a cycle on ``hardware``."""
    train = _train(task, execution, hardware)
    phases = [
        Phase("sync", tuple(_sync(task, execution, hardware))),
        Phase("rollout", tuple(rollout(task, execution, hardware))),
        Phase("logprob", tuple(_logprob(task, execution, hardware))),
        Phase("train", tuple(train)),
        Phase("offload", tuple(offload(task, execution, hardware))),
    ]
    useful = 3 * sum(_flops(task, task.usual)) * task.completions * task.steps
    seconds = sum(part.seconds for part in train)
    mfu = useful / (seconds * execution.degrees.world * hardware.bf16_tflops * 1e12)
    return Times(tuple(phases), task.steps, task.generation * task.usual, execution.gpus, mfu)


def training_seconds(task: Task, execution: Execution, hardware: Hardware) -> float:
    """Seconds of a cycle without rollout and offload."""
    parts = [
        *_sync(task, execution, hardware),
        *_logprob(task, execution, hardware),
        *_train(task, execution, hardware),
    ]
    return sum(part.seconds for part in parts)


# -- operations -------------------------------------------------------------------------------------------------------


def _flops(task: Task, tokens: int) -> tuple[float, float]:
    """Forward operations of one sequence: matrix products, and attention over the causal half of its score matrix."""
    s, c = task.shape, task.counts
    active = task.active - c.embedding - c.output - c.vision
    head = (c.output or c.embedding) * min(tokens, task.average)
    width = s.heads * ((s.head_dim + s.mla.v_dim) / 2 if s.mla else s.head_dim)
    return 2.0 * (active * tokens + head), 2.0 * s.layers * width * tokens**2


def _seconds(task: Task, tokens: int, hw: Hardware) -> float:
    """Seconds of one sequence's forward operations on one GPU."""
    matrices, attention = _flops(task, tokens)
    experts = 0.0
    if (e := task.shape.experts) is not None:
        experts = 2.0 * len(task.shape.moe_layers) * e.topk * task.counts.expert * tokens
    rate = hw.bf16_tflops * 1e12
    dense = (matrices - experts) / (rate * hw.matmul_efficiency)
    return dense + experts / (rate * hw.grouped_efficiency) + attention / (rate * hw.attention_efficiency)


def _pass(task: Task, execution: Execution, hw: Hardware, passes: float) -> Part:
    """``passes`` forward passes (a backward one counts 2) over a step's sequences on one GPU, without communication."""
    d = execution.degrees
    sequences = task.completions / d.dp
    share = passes * sequences / (d.tp * d.cp * d.pp)
    tensor = share * _seconds(task, task.usual, hw)
    tokens = sequences * task.usual / d.cp
    cut = d.tp if execution.sequence_parallel else 1
    layers = task.shape.layers / d.pp
    moved = passes * tokens * layers * task.shape.hidden * task.width * ELEMENTWISE / cut
    memory = moved / (hw.hbm_gb_per_s * 1e9)
    micro = execution.micro_batches(task, task.usual)
    collectives = 4 * ((d.tp > 1) + (d.cp > 1))
    starts = layers * (LAYER_STARTS + COLLECTIVE_STARTS * collectives) + _local_experts(task, execution) * EXPERT_STARTS
    host = passes * micro * starts * hw.launch_us * 1e-6
    device = tensor + memory
    bound = "host" if host > device else "HBM" if memory > tensor else "tensor cores"
    formula = (
        f"{passes:g} passes * {sequences:g} sequences of {task.usual:,} tokens: {tensor:.2f} s of products and "
        f"attention (dense at {hw.matmul_efficiency:.0%}, experts at {hw.grouped_efficiency:.0%} of the rate), "
        f"{memory:.2f} s of norms and residuals; the host needs {host:.2f} s for {micro} micro-batches"
    )
    return Part("compute", max(host, device), bound, formula)


def _local_experts(task: Task, execution: Execution) -> float:
    """Experts of all layers that one rank holds."""
    s, d = task.shape, execution.degrees
    return len(s.moe_layers) / d.pp * s.experts.count / d.ep if s.experts else 0.0


# -- training ---------------------------------------------------------------------------------------------------------


def _train(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
    again = {"none": 0.0, "selective": 0.1, "full": 1.0}[execution.recompute]
    if execution.recompute == "full" and execution.block_layers:
        again = min(1.0, execution.block_layers * execution.degrees.pp / task.shape.layers)
    compute = _pass(task, execution, hw, 3.0 + again)
    parts = [compute, *_communication(task, execution, hw, 3.0 + again)]
    parts += _bubble(task, execution, sum(part.seconds for part in parts))
    parts += [_reduce(task, execution, hw), _optimizer(task, execution, hw)]
    return [_times(part, task.steps) for part in parts if part.seconds > 0]


def _logprob(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
    passes = float(task.old_logprobs) + float(task.reference)
    if not passes:
        return []
    parts = [_pass(task, execution, hw, passes), *_communication(task, execution, hw, passes)]
    parts += _bubble(task, execution, sum(part.seconds for part in parts))
    return [_times(part, task.steps) for part in parts if part.seconds > 0]


def _times(part: Part, steps: int) -> Part:
    text = part.formula if steps == 1 else f"{steps} steps * ({part.formula})"
    return Part(part.name, part.seconds * steps, part.bound, text)


def _bubble(task: Task, execution: Execution, busy: float) -> list[Part]:
    d = execution.degrees
    if d.pp == 1:
        return []
    micro = execution.micro_batches(task, task.usual)
    share = (d.pp - 1) / (micro * d.vpp)
    text = f"{busy:.2f} s * (pp {d.pp} - 1) / ({micro} micro-batches * vpp {d.vpp}) (arXiv 2104.04473)"
    return [Part("pipeline bubble", busy * share, "tensor cores", text)]


def _communication(task: Task, execution: Execution, hw: Hardware, passes: float) -> list[Part]:
    """Collectives inside the layers, for a step, per GPU."""
    d, s = execution.degrees, task.shape
    tokens = task.completions / d.dp * task.usual / d.cp
    layers = s.layers / d.pp
    parts = []
    if d.tp > 1:
        size = passes * layers * 4 * tokens * s.hidden * task.width * (d.tp - 1) / d.tp
        rate, bound = _link(execution, hw, d.tp)
        text = (
            f"{passes:g} passes * {layers:g} layers * 2 gathers + 2 scatters of {tokens:,.0f} tokens over {d.tp} ranks"
        )
        parts.append(Part("tensor parallel", size / rate, bound, text))
    if d.cp > 1:
        keys = 2 * s.kv_heads * s.head_dim / d.tp * task.width
        size = passes * layers * tokens * keys * (d.cp - 1)
        rate, bound = _link(execution, hw, d.tp * d.cp)
        parts.append(Part("context parallel", size / rate, bound, f"keys and values go round {d.cp} ranks"))
    if s.experts and d.ep * d.etp > 1:
        moe = len(s.moe_layers) / d.pp
        size = passes * moe * 2 * tokens * s.experts.topk * s.hidden * task.width / d.tp * (d.ep - 1) / d.ep
        rate, bound = _link(execution, hw, d.ep * d.etp)
        text = (
            f"{passes:g} passes * {moe:g} layers * 2 * {s.experts.topk} copies of a token, all-to-all over {d.ep} ranks"
        )
        parts.append(Part("expert parallel", size / rate, bound, text))
    if d.pp > 1:
        size = passes * tokens * d.vpp * s.hidden * task.width / (d.tp if execution.sequence_parallel else 1)
        rate, bound = _link(execution, hw, d.world)
        parts.append(Part("pipeline", size / rate, bound, f"hidden states of {tokens:,.0f} tokens to the next stage"))
    return parts


def _link(execution: Execution, hw: Hardware, reach: int) -> tuple[float, str]:
    """Bytes per second between ``reach`` neighbouring ranks, and what they go through."""
    rack = hw.nvlink_domain if hw.nvlink_domain > 8 else 0  # a domain wider than a node joins the nodes of a rack
    if reach <= min(max(execution.per_node, rack), hw.nvlink_domain):
        return hw.nvlink_gb_per_s * 1e9, "NVLink"
    return hw.nic_gb_per_s * 1e9, "NIC"


def _reduce(task: Task, execution: Execution, hw: Hardware) -> Part:
    """Gradients to the ranks that update them, and the parameters back."""
    d = execution.degrees
    own = max((trained(task, execution, stage) for stage in (0, d.pp - 1)), key=lambda h: h.total)
    groups = ((own.dense, d.dp * d.cp, d.tp * d.cp * d.dp), (own.expert, d.edp, d.etp * d.ep * d.edp))
    seconds = 0.0
    bound = "NVLink"
    for size, ranks, reach in groups:
        if ranks > 1 and size:
            rate, link = _link(execution, hw, reach)
            seconds += size * (4 + task.width) * (ranks - 1) / ranks / rate
            bound = link
    if execution.overlap:
        seconds *= 0.2
    text = f"{own.total:,} fp32 gradients out, parameters back" + (
        ", four fifths of it overlapped" if execution.overlap else ""
    )
    return Part("gradient reduction", seconds, bound, text)


def _optimizer(task: Task, execution: Execution, hw: Hardware) -> Part:
    d = execution.degrees
    own = max((trained(task, execution, stage) for stage in (0, d.pp - 1)), key=lambda h: h.total)
    ranks = d.dp * d.cp if execution.distributed_optimizer else 1
    share = own.dense / ranks + own.expert / (d.edp if execution.distributed_optimizer else 1)
    moved = share * (2 * (4 + execution.moments) + 4 + task.width)
    on_host = execution.optimizer_on_host
    seconds = moved * (1 - on_host) / (hw.hbm_gb_per_s * 1e9)
    bound = "HBM"
    if on_host:
        seconds += share * on_host * (4 + task.width) / (hw.pcie_gb_per_s * 1e9)
        bound = "PCIe"
    return Part("optimizer", seconds, bound, f"{share:,.0f} parameters: state read and written, gradient read")


# -- rollout ----------------------------------------------------------------------------------------------------------


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
    prefill = share * _seconds(task, task.prompt, hw) / tp + _all_reduces(
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
    link = _link(execution, hw, tp)[1]
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
    rate, link = _link(execution, hw, tp)
    size = 2 * (tp - 1) / tp * tokens * task.shape.hidden * task.engine_width
    return 2 * task.shape.layers * (passes * ALL_REDUCE[link] + size / rate)


# -- between the phases -----------------------------------------------------------------------------------------------


def _sync(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
    """Every rank rebuilds the whole model from the shards and hands it to its engine."""
    s, d = task.shape, execution.degrees
    size = task.parameters * task.width
    tensors = len(s.dense_layers) * 11 + len(s.moe_layers) * 9 + 3
    experts = len(s.moe_layers) * 3 * s.experts.count if s.experts else 0
    cut = d.tp * d.pp * d.ep
    device = 2 * size / (hw.hbm_gb_per_s * 1e9 * SYNC_SHARE)
    merged = s.layers * SYNC_MERGE if task.lora_rank else 0.0
    call, expert_call = (SYNC_RELOAD, SYNC_RELOAD) if s.mla else (SYNC_CALL, SYNC_EXPERT_CALL)
    host = tensors * call + experts * expert_call + merged
    parts = [
        Part("checks", SYNC_CHECK, "host", "hashes of sampled tensors"),
        Part(
            "convert and load",
            max(device, host),
            "HBM" if device > host else "host",
            f"{size / 1e9:.1f} GB read and written at {SYNC_SHARE:.0%} of the copy rate; the host hands over "
            f"{tensors:,} tensors at {call * 1e6:.0f} us and {experts:,} of experts at "
            f"{expert_call * 1e6:.0f} us" + (f", and merges adapters in {merged:.2f} s" if merged else ""),
        ),
    ]
    if cut > 1:
        rate, bound = _link(execution, hw, d.tp * d.pp * max(1, d.ep // d.tp))
        parts.append(Part("gather", size * (cut - 1) / cut / rate, bound, f"shards of {cut} ranks"))
    if execution.server_nodes:
        parts.append(
            Part("to the servers", size / (hw.nic_gb_per_s * 1e9), "NIC", "one copy per node, over its network")
        )
    return parts


def offload(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
    """What leaves the GPU for the rollout and comes back."""
    d, rate = execution.degrees, hw.pcie_gb_per_s * 1e9
    have = max((held(task, execution, stage) for stage in (0, d.pp - 1)), key=lambda h: h.total)
    learn = max((trained(task, execution, stage) for stage in (0, d.pp - 1)), key=lambda h: h.total)
    parts = []
    if execution.offload_model:
        size: float = have.total * task.width * (2 if task.reference and not task.lora_rank else 1)
        parts.append(Part("model", 2 * size / rate, "PCIe", f"{size / 1e9:.1f} GB out and back"))
    if execution.offload_optimizer:
        ranks, edp = (d.dp * d.cp, d.edp) if execution.distributed_optimizer else (1, 1)
        size = (learn.dense / ranks + learn.expert / edp) * (4 + execution.moments)
        parts.append(Part("optimizer", 2 * size / rate, "PCIe", f"{size / 1e9:.1f} GB out and back"))
    if execution.sleep_level and not execution.server_nodes:
        parts.append(Part("sleep and wake", WAKE, "host", "memory of the engine unmapped and mapped again"))
    if execution.sleep_level == 1 and not execution.server_nodes:
        size = task.parameters * task.engine_width / execution.engine_tp
        parts.append(Part("vLLM weights", 2 * size / rate, "PCIe", f"{size / 1e9:.1f} GB out and back"))
    return parts
