"""Memory of the fullest GPU and of a node's host, phase by phase, every term with the formula that it comes from.

State follows Megatron-Core's mixed-precision layout: parameters in the training precision, gradients in fp32, and, cut
over the data-parallel ranks, fp32 master weights and Adam's moments. vLLM takes its share of the whole card and fills
what its weights and graphs leave with KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from grpo_hpc.plan.activations import LOGITS_CHUNK, in_flight, kept, stage_bytes
from grpo_hpc.plan.hardware import Hardware
from grpo_hpc.plan.parameter_counts import held, trained
from grpo_hpc.plan.sample_traffic import sample_memory
from grpo_hpc.plan.setup import Execution, Task
from grpo_hpc.plan.topology import GROUPS

GIB = 2**30
CONTEXT = int(1.26 * GIB)  # CUDA context, loaded kernels, cuBLAS and its work space of one process, measured on H200s
WORLD = int(0.55 * GIB)  # NCCL's first communicator, of all ranks, as measured there
COMMUNICATOR = int(0.38 * GIB)  # each further one, opened when it is first used
ALWAYS_USED = 2  # process groups that speak in every run, even those of one rank: gradient norm and reduction
GRAPHS = 24 * 2**10  # bytes of vLLM's CUDA graphs for each layer and hidden unit, from two models on H200s
ENGINE_WORK = int(1.5 * GIB)  # vLLM's activations at its largest batch
ASLEEP = int(0.5 * GIB)  # what a sleeping engine does not give back
SLACK = 0.06  # share of passing allocations that the caching allocator cannot use again
LIBRARIES = int(1.5 * GIB)  # of a rank on a CPU
PROCESS = 6 * GIB  # host memory of one rank: Python, libraries, pinned buffers
MARGIN = 0.05  # a plan that leaves less of the GPU free is called tight
BLOCK = 16  # tokens of one block of vLLM's KV cache
LEAST_CACHE = 0.25  # GiB of it that are given to any engine
PHASES = ("start", "sync", "rollout", "logprob", "train", "save")


@dataclass(frozen=True)
class Term:
    """One part of a memory estimate: its name, its bytes and the formula with its numbers."""

    name: str
    bytes: int
    formula: str


@dataclass(frozen=True)
class Use:
    """Memory in one phase."""

    phase: str
    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        return sum(term.bytes for term in self.terms)


@dataclass(frozen=True)
class Memory:
    """What a run takes.

    Attributes:
        phases: of the fullest GPU that trains (and samples, when they share GPUs).
        stage: the pipeline stage of that GPU.
        host: of one node that trains.
        servers: of a GPU of a vLLM server; empty when vLLM shares the trainer's GPUs.
        kv_tokens: tokens that the KV cache of one engine holds.
        checkpoint: bytes of one checkpoint.
    """

    phases: tuple[Use, ...]
    stage: int
    host: Use
    servers: tuple[Term, ...]
    kv_tokens: int
    checkpoint: int

    @property
    def peak(self) -> Use:
        return max(self.phases, key=lambda use: use.total)


def estimate(task: Task, execution: Execution, hardware: Hardware | None) -> Memory:
    """The memory of a run on ``hardware``, or on CPUs, where every rank's share of the host's memory is meant."""
    last = execution.degrees.pp - 1
    stages = sorted({0, last // 2, last})
    candidates = [(_phases(task, execution, hardware, stage), stage) for stage in stages]
    phases, stage = max(candidates, key=lambda found: max(use.total for use in found[0]))
    engine = engine_terms(task, execution, hardware)
    kv = next(term.bytes for term in engine if term.name == "KV cache")
    tokens = max(0, kv) // kv_bytes_per_token(task, execution) if kv > 0 else 0
    host = _host(task, execution, phases)
    everything = sum(held(task, execution, s).total for s in range(last + 1)) * execution.degrees.tp
    saved = task.parameters if not task.lora_rank else everything
    checkpoint = saved * task.width + _saved_state(task, execution)
    return Memory(tuple(phases), stage, host, tuple(engine) if execution.server_nodes else (), tokens, checkpoint)


def _phases(task: Task, execution: Execution, hardware: Hardware | None, stage: int) -> list[Use]:
    model, optimizer = _model_terms(task, execution, stage), _optimizer_terms(task, execution, stage)
    base = base_terms(execution)
    colocated = not execution.server_nodes
    engine = engine_terms(task, execution, hardware) if colocated else []
    away = execution.sleep_level > 0
    weights_only = [term for term in engine if term.name == "vLLM weights"]
    residue = [Term("vLLM asleep", ASLEEP, "measured")] if colocated else []
    stays = [*([] if execution.offload_model else model), *([] if execution.offload_optimizer else optimizer)]
    # what vLLM took for its activations and gave back is torch's: the trainer's passing tensors lie there, too
    resting = residue if away else [term for term in engine if term.name != "vLLM activations"]
    forward, train = _forward_terms(task, execution), _train_terms(task, execution, stage)
    synced = [*base, *model, *([] if execution.offload_optimizer else optimizer), *_sync_terms(task)]
    found = {
        "start": [*base, *stays, *engine],
        "sync": [*synced, *([*weights_only, *residue] if away else resting)],
        "rollout": [*base, *stays, *engine],
        "logprob": [*base, *model, *optimizer, *forward, *resting],
        "train": [*base, *model, *optimizer, *train, *resting],
        "save": [*base, *model, *optimizer, *resting],
    }
    return [Use(phase, tuple(found[phase])) for phase in PHASES]


def training_bytes(task: Task, execution: Execution, stage: int) -> tuple[int, int, int]:
    """Bytes of one stage without vLLM: while training; of model and gradients; of the optimizer's state."""
    model = sum(term.bytes for term in _model_terms(task, execution, stage))
    optimizer = sum(term.bytes for term in _optimizer_terms(task, execution, stage))
    passing = sum(term.bytes for term in [*base_terms(execution), *_train_terms(task, execution, stage)])
    return passing + model + optimizer, model, optimizer


def base_terms(execution: Execution) -> list[Term]:
    """What a process and its communication take before anything is loaded."""
    if execution.on_cpu:
        return [Term("process", LIBRARIES, "1.5 GiB of Python and libraries")]
    groups = sum(math.prod(execution.degrees.size(axis) for axis in axes) > 1 for axes in GROUPS.values())
    groups = max(groups, ALWAYS_USED)
    return [
        Term("CUDA context", CONTEXT, "1.26 GiB with kernels and cuBLAS"),
        Term("NCCL", WORLD + groups * COMMUNICATOR, f"0.55 GiB + {groups} process groups * 0.38 GiB"),
    ]


def _model_terms(task: Task, execution: Execution, stage: int) -> list[Term]:
    """Weights, gradients and the reference model."""
    have, learn, w = held(task, execution, stage).total, trained(task, execution, stage).total, task.width
    terms = [Term("weights", (have + _extra(have, learn)) * w, f"{have:,} parameters * {w} B")]
    terms.append(Term("gradients", learn * 4, f"{learn:,} parameters * 4 B"))
    if task.reference and not task.lora_rank:
        terms.append(Term("reference model", have * w, f"{have:,} parameters * {w} B"))
    return terms


def _extra(have: int, learn: int) -> int:
    """Adapters come on top of the frozen model."""
    return learn if learn < have else 0


def _optimizer_terms(task: Task, execution: Execution, stage: int) -> list[Term]:
    own, (dp, edp) = trained(task, execution, stage), _sharers(execution)
    master, moments = 4 if task.width == 2 else 0, execution.moments
    formula = f"{own.dense:,} parameters / {dp}"
    if own.expert:
        formula = f"({formula} + {own.expert:,} of experts / {edp})"
    formula += f" * ({master} + {moments}) B"
    each: float = master + moments
    if away := execution.optimizer_on_host:
        gone = moments + master
        each -= away * gone
        formula += f", {away:.0%} of {gone} B in host memory"
    return [Term("optimizer", math.ceil(_updated(task, execution, stage) * each), formula)]


def _sharers(execution: Execution) -> tuple[int, int]:
    """Ranks over which the state of dense layers and of experts is cut."""
    d = execution.degrees
    return (d.dp * d.cp, d.edp) if execution.distributed_optimizer else (1, 1)


def _updated(task: Task, execution: Execution, stage: int) -> float:
    """Parameters whose optimizer state a rank of the stage holds."""
    own, (dp, edp) = trained(task, execution, stage), _sharers(execution)
    return own.dense / dp + own.expert / edp


def _tokens(execution: Execution) -> int:
    return math.ceil(execution.micro_tokens / execution.degrees.cp)


def _forward_terms(task: Task, execution: Execution) -> list[Term]:
    """A forward pass without gradients: one layer's activations at a time."""
    tokens, size = _tokens(execution), kept(task, execution).whole
    layer = math.ceil(tokens * size)
    terms = [Term("one layer", layer, f"{tokens:,} tokens * {size:,.0f} B"), *_logits(task, execution, 1)]
    return [*terms, _slack(terms)]


def _train_terms(task: Task, execution: Execution, stage: int) -> list[Term]:
    tokens, size = _tokens(execution), kept(task, execution)
    flying = in_flight(execution, stage, execution.micro_batches(task, task.longest))
    one = stage_bytes(task, execution, stage, tokens)
    layers = sum(execution.layers_on(task.shape, stage))
    terms = [
        Term(
            "activations",
            math.ceil(flying * one),
            f"{flying:g} micro-batches in flight * {tokens:,} tokens * {one / max(tokens, 1):,.0f} B "
            f"({layers} layers, recompute {execution.recompute})",
        ),
        Term("backward pass", math.ceil(tokens * size.whole), f"{tokens:,} tokens * {size.whole:,.0f} B of one layer"),
    ]
    terms += _expert_terms(task, execution)
    if execution.recompute == "full" and execution.group_layers > 1:
        more = math.ceil(tokens * size.whole * (execution.group_layers - 1))
        terms.append(Term("recomputed group", more, f"{execution.group_layers - 1} further layers of a group"))
    if stage == execution.degrees.pp - 1:
        terms += _logits(task, execution, 2)
    return [*terms, _slack(terms)]


def _expert_terms(task: Task, execution: Execution) -> list[Term]:
    """Experts are computed together: gate and up of all of a rank's lie side by side, and so do their gradients."""
    e, d = task.shape.experts, execution.degrees
    if e is None:
        return []
    count, copies = 2 * e.ffn * task.shape.hidden * e.count // (d.ep * d.etp), 1 if task.lora_rank else 2
    return [Term("experts together", count * copies * task.width, f"{count:,} weights * {copies} * {task.width} B")]


def _logits(task: Task, execution: Execution, copies: int) -> list[Term]:
    """Logits exist for one chunk of scored tokens: in the training precision, and in fp32."""
    rows, chunk = math.ceil(task.shape.vocab / execution.degrees.tp), min(LOGITS_CHUNK, _tokens(execution))
    size = chunk * rows * (4 * copies + task.width)
    return [Term("logits", size, f"{chunk:,} tokens * {rows:,} entries * ({copies} * 4 + {task.width}) B")]


def _slack(terms: Iterable[Term]) -> Term:
    passing = sum(term.bytes for term in terms)
    return Term("allocator slack", math.ceil(SLACK * passing), f"{SLACK:.0%} of what comes and goes")


def _sync_terms(task: Task) -> list[Term]:
    """The largest tensor whole, in both precisions."""
    largest = max(task.counts.embedding, task.counts.mlp, task.counts.expert)
    size = largest * (task.width + task.engine_width)
    return [Term("tensor in transit", size, f"{largest:,} parameters * ({task.width} + {task.engine_width}) B")]


def engine_terms(task: Task, execution: Execution, hardware: Hardware | None) -> list[Term]:
    """vLLM on one GPU. A KV cache below zero means that its weights do not fit into its share."""
    tp, w = execution.engine_tp, task.engine_width
    weights = math.ceil(task.parameters * w / tp)
    terms = [Term("vLLM weights", weights, f"{task.parameters:,} parameters * {w} B / {tp}")]
    gib = execution.kv_gib or 0.0
    given = Term("KV cache", int(gib * GIB), f"{gib:g} GiB (rollout.vllm_kv_cache_gib)")
    if hardware is None:
        return [*terms, given]
    seqs = execution.sequences(task)
    work = ENGINE_WORK + seqs * math.ceil(task.shape.vocab / tp) * 8
    terms.append(
        Term("vLLM activations", work, f"1.5 GiB + {seqs} sequences * {task.shape.vocab:,} logits * 8 B / {tp}")
    )
    rest = int(execution.memory_share * hardware.memory) - sum(term.bytes for term in terms)
    formula = f"{execution.memory_share:g} * {hardware.memory_gib:g} GiB - the terms above"
    terms.append(Term("KV cache", rest, formula) if execution.kv_gib is None else given)
    if not execution.eager:  # captured when the cache is there, beyond vLLM's share
        layers, hidden = task.shape.layers, task.shape.hidden
        size = math.ceil(layers * hidden * GRAPHS / tp)
        terms.append(Term("CUDA graphs", size, f"{layers} layers * {hidden:,} * 24 KiB / {tp}"))
    return terms


def planned_cache(task: Task, execution: Execution, hardware: Hardware) -> float:
    """GiB of KV cache for one engine that neither has a size nor a share of the GPU.

    All of its sequences at their longest, if every phase then leaves a tenth of the GPU free; else what is left, down
    to one sequence. Nothing leaves the GPU for it.
    """
    none = replace(execution, kv_gib=0.0)
    last = execution.degrees.pp - 1
    if execution.server_nodes:
        fullest = sum(term.bytes for term in engine_terms(task, none, hardware))
    else:
        uses = [use for stage in {0, last // 2, last} for use in _phases(task, none, hardware, stage)]
        fullest = max(use.total for use in uses if any(term.name == "KV cache" for term in use.terms))
    sequence = (math.ceil(task.longest / BLOCK) + 1) * BLOCK * kv_bytes_per_token(task, execution)
    wanted = min(execution.sequences(task), math.ceil(task.generation / execution.engines)) * sequence
    left = (1 - 2 * MARGIN) * hardware.memory - fullest
    return max(LEAST_CACHE, math.ceil(sequence / GIB * 100) / 100, math.floor(min(wanted, left) / GIB * 100) / 100)


def kv_bytes_per_token(task: Task, execution: Execution) -> int:
    """Bytes that one token takes in the KV cache of one GPU; vLLM copies key/value heads that tp cannot split."""
    s = task.shape
    if s.mla:
        return s.layers * (s.mla.kv_rank + s.mla.rope_dim) * task.engine_width
    heads = max(1, math.ceil(s.kv_heads / execution.engine_tp))
    return 2 * s.layers * heads * s.head_dim * task.engine_width


def _host(task: Task, execution: Execution, phases: list[Use]) -> Use:
    """Host memory of a node: what its ranks put there."""
    n = execution.per_node
    sizes = {term.name: term.bytes for term in next(use for use in phases if use.phase == "train").terms}
    terms = [Term("processes", n * PROCESS, f"{n} ranks * 6 GiB")]
    if execution.offload_model:
        away = sizes["weights"] + sizes.get("reference model", 0)
        terms.append(Term("model, offloaded", n * away, f"{n} ranks * {away / GIB:.2f} GiB; gradients are dropped"))
    if execution.offload_optimizer:
        terms.append(
            Term("optimizer, offloaded", n * sizes["optimizer"], f"{n} ranks * {sizes['optimizer'] / GIB:.2f} GiB")
        )
    if (share := execution.optimizer_on_host) > 0:
        count = max(_updated(task, execution, stage) for stage in range(execution.degrees.pp))
        resident = math.ceil(share * count * (8 + execution.moments))
        text = f"{n} ranks * {resident / GIB:.2f} GiB of fp32 weights, gradients and moments"
        terms.append(Term("optimizer on the host", n * resident, text))
    if execution.sleep_level == 1 and not execution.server_nodes:
        weights = math.ceil(task.parameters * task.engine_width / execution.engine_tp)
        terms.append(Term("sleeping vLLM weights", n * weights, f"{n} ranks * {weights / GIB:.2f} GiB"))
    terms.append(Term("completions", *sample_memory(task, execution)))
    saving = sizes["weights"] + sizes["optimizer"]
    terms.append(Term("checkpoint staging", n * saving, f"{n} ranks * {saving / GIB:.2f} GiB while saving"))
    return Use("host", tuple(terms))


def _saved_state(task: Task, execution: Execution) -> int:
    """Bytes of optimizer state in a checkpoint."""
    d = execution.degrees
    own = [trained(task, execution, stage) for stage in range(d.pp)]
    each = (4 if task.width == 2 else 0) + execution.moments
    return sum(part.dense * d.tp + part.expert * d.ep * d.etp for part in own) * each
