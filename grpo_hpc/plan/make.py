"""The plan of a run: topology, batch schedule, memory, time, and what to be warned of."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from grpo_hpc.config import RunConfig
from grpo_hpc.config.adapters import named_linears
from grpo_hpc.config.batch import BatchSchedule, refused_by_ms_swift, schedule, sizes_of, steps_of_epochs
from grpo_hpc.config.library import model_config
from grpo_hpc.config.problems import raise_problems
from grpo_hpc.config.rules import warmup_problems
from grpo_hpc.data.rows import count_rows
from grpo_hpc.errors import PlanError
from grpo_hpc.models.families.counting import count_active, count_parameters, require_linears
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.shape import ModelShape, require_engine, require_experts
from grpo_hpc.plan import memory, time
from grpo_hpc.plan.hardware import Hardware, read_hardware
from grpo_hpc.plan.layout_rules import broken
from grpo_hpc.plan.measured.measured_errors import accuracy
from grpo_hpc.plan.measured.pace import Pace
from grpo_hpc.plan.memory import GIB, MARGIN, Memory, planned_cache
from grpo_hpc.plan.rates import Times
from grpo_hpc.plan.setup import Execution, Task, execution_of, require_lengths, task_of
from grpo_hpc.plan.site import Site, on_site, site_warnings
from grpo_hpc.plan.topology import Degrees, ServerPlace, Topology, make_servers, make_topology

Verdict = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True)
class Estimate:
    """What a run takes on its hardware.

    Attributes:
        hardware: None on CPUs, for which no time is estimated.
    """

    task: Task
    execution: Execution
    hardware: Hardware | None
    memory: Memory
    times: Times | None

    @cached_property
    def troubles(self) -> list[str]:
        """Why the run does not fit; empty when it does."""
        if self.hardware is None:
            return []
        found = []
        peak, room = self.memory.peak, self.hardware.memory
        if peak.total > room:
            found.append(
                f"the {peak.phase} phase needs {peak.total / GIB:.1f} GiB on a GPU of {self.hardware.memory_gib:g} GiB"
            )
        if self.memory.kv_tokens < self.task.longest:
            key = "vllm_gpu_memory_utilization" if self.execution.kv_gib is None else "vllm_kv_cache_gib"
            found.append(
                f"the KV cache holds {self.memory.kv_tokens:,} tokens, less than a sequence of {self.task.longest:,}: "
                f"give vLLM more memory (rollout.{key}) or more GPUs "
                "(rollout.vllm_tensor_parallel_size)"
            )
        if self.memory.host.total > self.hardware.host_memory_gib * GIB:
            found.append(
                f"a node's host needs {self.memory.host.total / GIB:,.0f} GiB of "
                f"{self.hardware.host_memory_gib:,.0f} GiB"
            )
        return found

    @property
    def verdict(self) -> Verdict:
        """Whether the run fits; tight ones may run out where an estimate is too low."""
        if self.troubles:
            return "does not fit"
        if self.hardware and self.memory.peak.total > (1 - MARGIN) * self.hardware.memory:
            return "tight"
        return "fits"


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        run: the run file, with what it leaves to the plan decided.
        shape: the model; None when its config is not on this machine, and then there is no estimate.
        servers: vLLM servers on nodes of their own; empty when vLLM shares the trainer's.
        warnings: what the reader should know before starting.
    """

    run: RunConfig
    topology: Topology
    schedule: BatchSchedule
    shape: ModelShape | None
    estimate: Estimate | None
    servers: tuple[ServerPlace, ...]
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def device(self) -> str:
        return self.run.resources.device

    @property
    def train_iters(self) -> int | None:
        """Optimizer steps; None where they follow from rows that are not on this machine."""
        return self.run.batch.train_iters

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-safe values (docs/planner.md has the schema); sizes in bytes, times in seconds."""
        top = self.topology
        return {
            "name": self.name,
            "device": self.device,
            "topology": {
                **{axis: top.degrees.size(axis) for axis in ("tp", "cp", "dp", "pp", "ep", "etp", "edp", "vpp")},
                "world_size": top.world_size,
                "nproc_per_node": top.nproc_per_node,
                "ranks": [asdict(place) for place in top.places],
                "nodes_spanned": top.crossing(),
                "servers": [asdict(server) for server in self.servers],
            },
            "schedule": {**asdict(self.schedule), "train_iters": self.train_iters},
            "model": None if self.shape is None else _model(self.shape),
            "estimate": None if self.estimate is None else _estimate(self.estimate),
            "warnings": list(self.warnings),
        }


def _model(shape: ModelShape) -> dict[str, Any]:
    counts = {"parameters": count_parameters(shape), "active_parameters": count_active(shape)}
    return {"family": shape.family, "layers": shape.layers, "hidden": shape.hidden, "vocab": shape.vocab, **counts}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    m, t = estimate.memory, estimate.times
    return {
        "verdict": estimate.verdict,
        "troubles": estimate.troubles,
        "hardware": None if estimate.hardware is None else asdict(estimate.hardware),
        "average_completion": estimate.task.average,
        "like": None if estimate.task.pace is None else estimate.task.pace.to_dict(),
        "memory": {
            "phases": {use.phase: [asdict(term) for term in use.terms] for use in m.phases},
            "peak": {"phase": m.peak.phase, "bytes": m.peak.total, "stage": m.stage},
            "host": [asdict(term) for term in m.host.terms],
            "servers": [asdict(term) for term in m.servers],
            "kv_tokens": m.kv_tokens,
            "checkpoint": m.checkpoint,
        },
        "time": None
        if t is None
        else {
            "phases": {phase.name: [asdict(part) for part in phase.parts] for phase in t.phases},
            "cycle": t.cycle,
            "step": t.step,
            "tokens_per_s_per_gpu": t.rate,
            "mfu": t.mfu,
        },
        "accuracy": accuracy(estimate.execution.eager),
    }


def make_plan(cfg: RunConfig, average: int | None = None, site: Site | None = None, pace: Pace | None = None) -> Plan:
    """Plan a run.

    Reads the model's ``config.json`` from ``model.path``, or ``model.config`` while the folder is not there; and, for
    a run whose length is given in epochs, the rows of ``data.train``.

    Args:
        average: completion length on average, for the time estimate; half of the longest when absent.
        pace: of a run whose lengths and rates take the place of assumptions and data sheets.
        site: the cluster that the run is for; None where it is not known.

    Raises:
        ConfigError: the batch sizes do not fit together, sequences are longer than the model's, there is no such
            hardware profile, or the rows of a run with epochs are wrong.
        PlanError: the model cannot be cut as asked.
        CheckpointError: the model's config cannot be read or its family is not supported.
    """
    if pace is not None and cfg.resources.device == "cpu":
        raise PlanError(f"the run {cfg.name} is for a CPU, and plans have times for GPUs alone", "Leave --like out.")
    site = site or Site()
    cfg = on_site(cfg, site)
    shape = find_shape(cfg)
    if shape is not None:
        require_lengths(cfg, shape)
        require_engine(shape, cfg.resources.device)
        require_experts(shape, cfg.moe.chosen())
        if cfg.tuner.tuner_type == "lora":
            require_linears(shape, named_linears(cfg.tuner.target_modules))
    cfg = _with_cache(_with_steps(cfg))
    sizes = schedule(cfg)
    estimate = None if shape is None else make_estimate(cfg, shape, sizes, average, pace)
    topology = make_topology(_degrees(cfg, sizes), cfg.resources.nproc_per_node)
    roll = cfg.rollout
    servers = (
        make_servers(
            cfg.resources.nodes,
            roll.vllm_server_nodes,
            cfg.resources.nproc_per_node,
            roll.vllm_tensor_parallel_size,
            roll.vllm_server_port,
        )
        if roll.vllm_mode == "server"
        else []
    )
    warnings = [*site_warnings(cfg, site), *_epochs(cfg), *_warnings(cfg, sizes, topology, shape)]
    if estimate is not None:
        warnings += [*_estimate_warnings(estimate), *_timeout_warnings(cfg, estimate)]
        warnings += _saving_warnings(site.warned_s, estimate)
    return Plan(
        cfg,
        topology,
        sizes,
        shape,
        estimate,
        tuple(servers),
        tuple(warnings),
    )


def _with_steps(cfg: RunConfig) -> RunConfig:
    """``cfg`` with its length in optimizer steps, where it has epochs and its rows are on this machine."""
    b = cfg.batch
    if b.train_iters is not None or b.num_train_epochs is None or not Path(cfg.data.train).exists():
        return cfg
    rows = count_rows(cfg.data.train).rows
    steps = steps_of_epochs(b.num_train_epochs, rows, b.num_generations, b.global_batch_size)
    decided = cfg.model_copy(update={"batch": b.model_copy(update={"train_iters": steps})})
    raise_problems(warmup_problems(decided), f"num_train_epochs {b.num_train_epochs} over {rows} rows", {})
    return decided


def _epochs(cfg: RunConfig) -> list[str]:
    """What becomes of the epochs of a run that has them."""
    b = cfg.batch
    if b.num_train_epochs is None:
        return []
    text = f"num_train_epochs {b.num_train_epochs}: rows * {b.num_generations} * {b.num_train_epochs} // "
    text += f"{b.global_batch_size} optimizer steps"
    if b.train_iters is None:
        return [f"{text}, which are known where the rows are: {cfg.data.train} is not on this machine"]
    return [f"{text}: train_iters {b.train_iters:,}"]


def _with_cache(cfg: RunConfig) -> RunConfig:
    """``cfg`` with the size of vLLM's KV cache on a GPU, which it leaves to the plan.

    It stays open where nobody said which GPU it is, as a share of the GPU fits any; where there is no config.json to
    count with; and where the layout is impossible, which :func:`make_plan` says.
    """
    roll = cfg.rollout
    given = "vllm_gpu_memory_utilization" in roll.model_fields_set or roll.vllm_kv_cache_gib is not None
    known = cfg.resources.device == "cuda" and "gpu" in cfg.resources.model_fields_set
    if given or not known or (shape := find_shape(cfg)) is None:
        return cfg
    sizes = schedule(cfg)
    task = task_of(cfg, shape, sizes)
    execution = execution_of(cfg, sizes, task)
    if broken(shape, execution):
        return cfg
    size = planned_cache(task, execution, read_hardware(cfg.resources.gpu))
    return cfg.model_copy(update={"rollout": roll.model_copy(update={"vllm_kv_cache_gib": size})})


def make_estimate(
    cfg: RunConfig, shape: ModelShape, sizes: BatchSchedule, average: int | None = None, pace: Pace | None = None
) -> Estimate:
    """Memory and time of a run.

    Raises:
        PlanError: lists every rule that the model and the layout break, with the nearest values that keep it.
    """
    task = task_of(cfg, shape, sizes, average, pace)
    execution = execution_of(cfg, sizes, task)
    if wrong := broken(shape, execution):
        lines = [line for rule in wrong for line in rule.lines()]
        raise PlanError("the model cannot be cut as asked:\n" + "\n".join(f"  {line}" for line in lines))
    hardware = read_hardware(cfg.resources.gpu) if cfg.resources.device == "cuda" else None
    return estimate_of(task, execution, hardware)


def estimate_of(task: Task, execution: Execution, hardware: Hardware | None) -> Estimate:
    """Memory and, on GPUs, time."""
    times = None if hardware is None else time.estimate(task, execution, hardware)
    return Estimate(task, execution, hardware, memory.estimate(task, execution, hardware), times)


def _degrees(cfg: RunConfig, sizes: BatchSchedule) -> Degrees:
    par = cfg.parallel
    return Degrees(
        sizes.world_size,
        tp=par.tensor_model_parallel_size,
        cp=par.context_parallel_size,
        pp=par.pipeline_model_parallel_size,
        ep=par.expert_model_parallel_size,
        etp=par.expert_tensor_parallel_size,
        vpp=par.virtual_pipeline_model_parallel_size or 1,
    )


def find_shape(cfg: RunConfig) -> ModelShape | None:
    """The model's shape, from its folder or from ``model.config``; None when neither is there."""
    folder = Path(cfg.model.path) / "config.json"
    if folder.is_file():
        return read_shape(folder)
    if cfg.model.config is None:
        return None
    return read_shape(model_config(cfg.model.config) or cfg.model.config)


def _warnings(cfg: RunConfig, sizes: BatchSchedule, topology: Topology, shape: ModelShape | None) -> list[str]:
    found: list[str] = []
    if shape is None:
        found.append(
            f"no memory estimate: {cfg.model.path}/config.json is not on this machine; "
            "give model.config, a copy of the model's config.json"
        )
    else:
        found += _length_warnings(cfg, shape)
    found += [
        f"ms-swift would refuse these batch sizes, which are sound here: {rule.symbols} = {rule.numbers}"
        for rule in refused_by_ms_swift(sizes_of(cfg))
    ]
    if last := (cfg.batch.train_iters or 0) % sizes.steps_per_rollout:
        found.append(
            f"the last rollout serves {last} of {sizes.steps_per_rollout} steps: "
            f"train_iters {cfg.batch.train_iters} is not a multiple of steps_per_generation * num_iterations"
        )
    if cfg.rollout.environment is not None:
        found.append(
            "times are those of one turn and no environment; memory is that of whole episodes "
            f"(rollout.vllm_max_model_len = {cfg.rollout.vllm_max_model_len})"
        )
    for name, waits in (("tp", "every layer waits"), ("ep", "every layer with experts waits")):
        if (spanned := topology.nodes_spanned(name)) > 1:
            found.append(f"{name} groups reach over {spanned} nodes: {waits} for the network")
    return found


def _length_warnings(cfg: RunConfig, shape: ModelShape) -> list[str]:
    longest = cfg.rollout.vllm_max_model_len
    if longest is None and cfg.data.max_length is None:
        return [
            f"memory is counted for sequences of {shape.max_position} tokens, the model's longest: "
            "data.max_length or rollout.vllm_max_model_len would bound them"
        ]
    return []


def _timeout_warnings(cfg: RunConfig, estimate: Estimate) -> list[str]:
    """An estimate may be off, and the longest of many rollouts is longer than the usual one."""
    limit = cfg.rollout.rollout_timeout_minutes
    rollout = 0.0 if estimate.times is None else estimate.times.seconds("rollout") / 60
    if rollout <= limit / 2:
        return []
    return [
        f"a rollout is estimated to take {rollout:,.0f} minutes, and no rank waits for one longer than "
        f"rollout.rollout_timeout_minutes = {limit:g}: give at least {math.ceil(2 * rollout):,}"
    ]


def _saving_warnings(warned_s: int | None, estimate: Estimate) -> list[str]:
    """Whether a run would stop in time: it hears a wish to stop at once in a rollout, else between steps."""
    if warned_s is None or (times := estimate.times) is None:
        return []
    step = times.seconds("logprob") + times.seconds("train") / times.steps + times.seconds("offload")
    if step <= warned_s:
        return []
    return [
        f"one optimizer step is estimated to take {step:,.0f} s, and a job near its time limit has {warned_s:,} s to "
        f"stop and save (save_before_s of the cluster profile): what came after the newest checkpoint would be lost; "
        f"give at least {math.ceil(2 * step):,} s, or set checkpoint.save_steps"
    ]


def _estimate_warnings(estimate: Estimate) -> list[str]:
    found = [f"does not fit: {trouble}" for trouble in estimate.troubles]
    if estimate.verdict == "tight" and estimate.hardware:
        free = 1 - estimate.memory.peak.total / estimate.hardware.memory
        found.append(f"tight: the {estimate.memory.peak.phase} phase leaves {free:.1%} of the GPU free")
    shape = estimate.task.shape
    if (tp := estimate.execution.degrees.tp) > 1 and (rest := -shape.vocab % tp):
        found.append(f"the vocabulary of {shape.vocab:,} rows is padded by {rest} to be cut by tp {tp}")
    return found
