"""What the estimates are made from: the task, which a plan must not change, and the execution, which a search may.

Sizes are bytes and tokens. ``task_of`` and ``execution_of`` read a run file; the search makes executions of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule, engine_sequences
from grpo_hpc.errors import ConfigError
from grpo_hpc.models.families.counting import ParameterCount, count_active, count_by_part, count_parameters
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.plan.measured.pace import Pace
from grpo_hpc.plan.topology import Degrees

_WIDTH = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Task:
    """What is learned, from what, in which batches.

    Attributes:
        width, engine_width: bytes of a parameter in training and in vLLM.
        prompt: prompt tokens; the longest that the run file admits.
        completion: longest completion in tokens.
        average: completion tokens on average, an assumption of the estimate.
        completions, generation: completions per optimizer step and per rollout.
        steps: optimizer steps made from one rollout.
        reference: a frozen copy of the model is kept.
        old_logprobs: the policy's log-probabilities are computed before the steps of a rollout.
        lora_rank: of the adapters; 0 trains all parameters.
        router_replay: whose choice of experts training follows, as in the run file.
        pace: of a run that was measured; None leaves lengths and rates to assumptions and data sheets.
    """

    shape: ModelShape
    width: int
    engine_width: int
    prompt: int
    completion: int
    average: int
    completions: int
    generation: int
    steps: int
    reference: bool
    old_logprobs: bool
    lora_rank: int
    router_replay: str
    pace: Pace | None = None

    @cached_property
    def counts(self) -> ParameterCount:
        return count_by_part(self.shape)

    @cached_property
    def parameters(self) -> int:
        """All parameters of the model."""
        return count_parameters(self.shape)

    @cached_property
    def active(self) -> int:
        """Parameters that take part for one token."""
        return count_active(self.shape)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt + self.completion

    @property
    def usual_prompt(self) -> int:
        """Tokens of a prompt of average length, where that was measured; else of the longest."""
        measured = self.pace.lengths.prompt if self.pace else None
        return self.prompt if measured is None else min(measured, self.prompt)

    @property
    def usual(self) -> int:
        """Tokens of a sequence of average length."""
        return self.usual_prompt + self.average


@dataclass(frozen=True)
class Execution:
    """How it is run; no field changes what is learned.

    Attributes:
        per_node: GPUs of a node.
        first_layers, last_layers: layers on the first and last stage where they differ from the others.
        micro_batch: completions of one forward pass; 0 where a token budget decides.
        micro_tokens: most tokens of one forward pass on one data-parallel rank.
        recompute: ``none``, ``selective`` or ``full``; ``block_layers`` of a stage are computed again, all when 0.
        group_layers: layers that one kept input serves under full recompute.
        moments: bytes of Adam's two moments of one parameter.
        optimizer_on_host: share of the optimizer state that lives in host memory.
        engine_tp, memory_share: of vLLM; ``server_nodes`` are 0 when it shares the GPUs of the trainer.
        kv_gib: vLLM's KV cache; None where the memory share decides.
        on_cpu: no GPU is used.
    """

    degrees: Degrees
    per_node: int
    micro_batch: int
    micro_tokens: int
    sequence_parallel: bool = False
    recompute: str = "none"
    recompute_modules: tuple[str, ...] = ()
    block_layers: int = 0
    group_layers: int = 1
    first_layers: int | None = None
    last_layers: int | None = None
    distributed_optimizer: bool = True
    overlap: bool = False
    moments: int = 8
    optimizer_on_host: float = 0.0
    engine_tp: int = 1
    memory_share: float = 0.3
    eager: bool = False
    max_num_seqs: int | None = None
    kv_gib: float | None = None
    on_cpu: bool = False
    server_nodes: int = 0
    sleep_level: int = 0
    offload_model: bool = False
    offload_optimizer: bool = False

    @property
    def nodes(self) -> int:
        """Nodes that train."""
        return self.degrees.world // self.per_node

    @property
    def gpus(self) -> int:
        """All GPUs of the job."""
        return self.degrees.world + self.server_nodes * self.per_node

    @property
    def engines(self) -> int:
        ranks = self.server_nodes * self.per_node or self.degrees.world
        return ranks // self.engine_tp

    def sequences(self, task: Task) -> int:
        """Completions that one engine works on at a time."""
        return engine_sequences(math.ceil(task.generation / self.engines), self.max_num_seqs)

    def micro_batches(self, task: Task, length: int) -> int:
        """Forward passes of an optimizer step on one data-parallel rank, for sequences of ``length`` tokens."""
        per_rank = math.ceil(task.completions / self.degrees.dp)
        each = self.micro_batch or max(1, self.micro_tokens // length)
        return math.ceil(per_rank / each)

    def stage_layers(self, layers: int) -> tuple[range | tuple[int, ...], ...]:
        """Numbers of the layers on each pipeline stage. Interleaved chunks are dealt round the stages."""
        d = self.degrees
        return _stage_layers(layers, d.pp, d.vpp, self.first_layers, self.last_layers)

    def layers_on(self, shape: ModelShape, stage: int) -> tuple[int, int]:
        """How many layers ``stage`` has without experts, and how many with."""
        layers = self.stage_layers(shape.layers)[stage]
        moe = len(set(shape.moe_layers).intersection(layers))
        return len(layers) - moe, moe


@cache
def _stage_layers(
    layers: int, pp: int, vpp: int, first: int | None, last: int | None
) -> tuple[range | tuple[int, ...], ...]:
    if vpp > 1:
        each = layers // (pp * vpp)
        chunks = [range(start, start + each) for start in range(0, layers, each)]
        return tuple(tuple(layer for chunk in chunks[stage::pp] for layer in chunk) for stage in range(pp))
    sizes = stage_sizes(layers, pp, first, last)
    starts = [sum(sizes[:stage]) for stage in range(pp)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


def stage_sizes(layers: int, stages: int, first: int | None, last: int | None) -> list[int]:
    """Layers of each stage: those named, and the others in equal parts (Megatron's rule)."""
    if stages == 1:
        return [layers]
    rest = layers - (first or 0) - (last or 0)
    middle = stages - (first is not None) - (last is not None)
    sizes = [rest // middle if middle else 0] * stages
    sizes[0] = sizes[0] if first is None else first
    sizes[-1] = sizes[-1] if last is None else last
    return sizes


def sequence_length(cfg: RunConfig, shape: ModelShape) -> int:
    """Longest prompt + completion in tokens that the run file and the model allow."""
    if cfg.rollout.vllm_max_model_len is not None:
        return cfg.rollout.vllm_max_model_len
    if cfg.data.max_length is not None:
        return cfg.data.max_length + cfg.rollout.max_completion_length
    return shape.max_position


def require_lengths(cfg: RunConfig, shape: ModelShape) -> None:
    """Refuse sequences that are longer than the model's longest.

    Raises:
        ConfigError: names the key, and the largest value that it may have.
    """
    positions, completion, prompt = shape.max_position, cfg.rollout.max_completion_length, cfg.data.max_length or 1
    longest = cfg.rollout.vllm_max_model_len
    if longest is not None and longest > positions:
        raise ConfigError(
            f"rollout.vllm_max_model_len = {longest} is beyond the model's longest sequence, {positions} tokens",
            f"Give at most {positions}, or leave it out.",
        )
    if prompt + completion <= positions:
        return
    name = f"data.max_length {prompt}" if cfg.data.max_length else "one token of a prompt"
    room = positions - completion
    ways = [f"data.max_length at most {room}"] * (room > 0 and cfg.data.max_length is not None)
    ways += [f"rollout.max_completion_length at most {positions - prompt}"] * (positions > prompt)
    raise ConfigError(
        f"{name} + rollout.max_completion_length {completion} = {prompt + completion} tokens are beyond the model's "
        f"longest sequence, {positions} tokens",
        f"Give {' or '.join(ways)}." if ways else "Give less of both.",
    )


def task_of(
    cfg: RunConfig,
    shape: ModelShape,
    schedule: BatchSchedule,
    average: int | None = None,
    pace: Pace | None = None,
) -> Task:
    """The task of a run file.

    Completions are half as long as the longest, unless ``average`` or the run that ``pace`` comes from says otherwise.
    """
    completion = cfg.rollout.max_completion_length
    if pace is not None:
        pace = replace(pace, lengths=pace.lengths.at_most(completion))
        average = average or pace.lengths.average
    longest = sequence_length(cfg, shape)
    a = cfg.algorithm
    lora = cfg.tuner.tuner_type == "lora"
    several = schedule.steps_per_rollout > 1
    return Task(
        shape=shape,
        width=_WIDTH[cfg.model.dtype],
        engine_width=_WIDTH[cfg.rollout.vllm_dtype],
        prompt=min(cfg.data.max_length or longest, longest - completion),
        completion=completion,
        average=min(average, completion) if average else max(1, completion // 2),
        completions=schedule.global_batch_size,
        generation=schedule.generation_batch_size,
        steps=schedule.steps_per_rollout,
        reference=bool(a.beta),
        old_logprobs=several,
        lora_rank=cfg.tuner.lora_rank if lora else 0,
        router_replay=cfg.moe.router_replay_mode,
        pace=pace,
    )


def execution_of(cfg: RunConfig, schedule: BatchSchedule, task: Task) -> Execution:
    """The execution of a run file."""
    par, roll, opt, res = cfg.parallel, cfg.rollout, cfg.optimizer, cfg.resources
    budget = cfg.batch.max_tokens_per_micro_batch
    full = par.recompute_granularity == "full"
    moment = {"float32": 4, "bfloat16": 2}
    return Execution(
        degrees=Degrees(
            schedule.world_size,
            tp=par.tensor_model_parallel_size,
            cp=par.context_parallel_size,
            pp=par.pipeline_model_parallel_size,
            ep=par.expert_model_parallel_size,
            etp=par.expert_tensor_parallel_size,
            vpp=par.virtual_pipeline_model_parallel_size or 1,
        ),
        per_node=res.nproc_per_node,
        micro_batch=0 if budget else cfg.batch.micro_batch_size,
        micro_tokens=budget or cfg.batch.micro_batch_size * task.longest,
        sequence_parallel=par.sequence_parallel,
        recompute=par.recompute_granularity or "none",
        recompute_modules=tuple(par.recompute_modules) if par.recompute_granularity == "selective" else (),
        block_layers=par.recompute_num_layers if full and par.recompute_method == "block" else 0,
        group_layers=par.recompute_num_layers if full and par.recompute_method == "uniform" else 1,
        first_layers=par.decoder_first_pipeline_num_layers,
        last_layers=par.decoder_last_pipeline_num_layers,
        distributed_optimizer=par.use_distributed_optimizer,
        overlap=par.overlap_grad_reduce,
        moments=moment[opt.exp_avg_dtype] + moment[opt.exp_avg_sq_dtype],
        optimizer_on_host=opt.optimizer_offload_fraction if opt.optimizer_cpu_offload else 0.0,
        engine_tp=roll.vllm_tensor_parallel_size,
        memory_share=roll.vllm_gpu_memory_utilization,
        eager=roll.vllm_enforce_eager,
        max_num_seqs=roll.vllm_max_num_seqs,
        kv_gib=roll.kv_cache_gib(res.device),
        on_cpu=res.device == "cpu",
        server_nodes=roll.vllm_server_nodes if roll.vllm_mode == "server" else 0,
        sleep_level=roll.sleep_level,
        offload_model=roll.offload_model,
        offload_optimizer=roll.offload_optimizer,
    )
