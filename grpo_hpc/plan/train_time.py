"""Seconds of the passes over a rollout's sequences: log-probabilities, and the optimizer steps.

Shapes: T tokens of a micro-batch on one context-parallel rank, h hidden size, N parameters.
"""

from __future__ import annotations

from grpo_hpc.plan.hardware import Hardware
from grpo_hpc.plan.parameter_counts import trained
from grpo_hpc.plan.rates import Part, forward_seconds, link_of
from grpo_hpc.plan.setup import Execution, Task

# What the host needs for a layer, in times that it takes to start a kernel: some forty are started, and the Python
# around them takes far longer. From runs beside H200s, docs/benchmarks/planner.md, with small models and micro-batches.
LAYER_STARTS = 215  # a forward pass of training
COLLECTIVE_STARTS = 22  # and for each of its collectives
EXPERT_STARTS = 2.8  # and for each expert that the rank holds
ELEMENTWISE = 24  # bytes of hidden states that norms, residuals and rotations move per token, width and pass


def training(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
    again = {"none": 0.0, "selective": 0.1, "full": 1.0}[execution.recompute]
    if execution.recompute == "full" and execution.block_layers:
        again = min(1.0, execution.block_layers * execution.degrees.pp / task.shape.layers)
    compute = _pass(task, execution, hw, 3.0 + again)
    parts = [compute, *_communication(task, execution, hw, 3.0 + again)]
    parts += _bubble(task, execution, sum(part.seconds for part in parts))
    parts += [_reduce(task, execution, hw), _optimizer(task, execution, hw)]
    return [_times(part, task.steps) for part in parts if part.seconds > 0]


def logprob(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
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


def _pass(task: Task, execution: Execution, hw: Hardware, passes: float) -> Part:
    """``passes`` forward passes (a backward one counts 2) over a step's sequences on one GPU, without communication."""
    d = execution.degrees
    sequences = task.completions / d.dp
    share = passes * sequences / (d.tp * d.cp * d.pp)
    tensor = share * forward_seconds(task, task.usual, hw)
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


def _communication(task: Task, execution: Execution, hw: Hardware, passes: float) -> list[Part]:
    """Collectives inside the layers, for a step, per GPU."""
    d, s = execution.degrees, task.shape
    tokens = task.completions / d.dp * task.usual / d.cp
    layers = s.layers / d.pp
    parts = []
    if d.tp > 1:
        size = passes * layers * 4 * tokens * s.hidden * task.width * (d.tp - 1) / d.tp
        rate, bound = link_of(execution, hw, d.tp)
        text = (
            f"{passes:g} passes * {layers:g} layers * 2 gathers + 2 scatters of {tokens:,.0f} tokens over {d.tp} ranks"
        )
        parts.append(Part("tensor parallel", size / rate, bound, text))
    if d.cp > 1:
        keys = 2 * s.kv_heads * s.head_dim / d.tp * task.width
        size = passes * layers * tokens * keys * (d.cp - 1)
        rate, bound = link_of(execution, hw, d.tp * d.cp)
        parts.append(Part("context parallel", size / rate, bound, f"keys and values go round {d.cp} ranks"))
    if s.experts and d.ep * d.etp > 1:
        moe = len(s.moe_layers) / d.pp
        size = passes * moe * 2 * tokens * s.experts.topk * s.hidden * task.width / d.tp * (d.ep - 1) / d.ep
        rate, bound = link_of(execution, hw, d.ep * d.etp)
        text = (
            f"{passes:g} passes * {moe:g} layers * 2 * {s.experts.topk} copies of a token, all-to-all over {d.ep} ranks"
        )
        parts.append(Part("expert parallel", size / rate, bound, text))
    if d.pp > 1:
        size = passes * tokens * d.vpp * s.hidden * task.width / (d.tp if execution.sequence_parallel else 1)
        rate, bound = link_of(execution, hw, d.world)
        parts.append(Part("pipeline", size / rate, bound, f"hidden states of {tokens:,.0f} tokens to the next stage"))
    return parts


def _reduce(task: Task, execution: Execution, hw: Hardware) -> Part:
    """Gradients to the ranks that update them, and the parameters back."""
    d = execution.degrees
    own = max((trained(task, execution, stage) for stage in (0, d.pp - 1)), key=lambda h: h.total)
    groups = ((own.dense, d.dp * d.cp, d.tp * d.cp * d.dp), (own.expert, d.edp, d.etp * d.ep * d.edp))
    seconds = 0.0
    bound = "NVLink"
    for size, ranks, reach in groups:
        if ranks > 1 and size:
            rate, link = link_of(execution, hw, reach)
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
