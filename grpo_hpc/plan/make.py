"""The plan of a run: topology, batch schedule, memory, and what to be warned of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule, schedule
from grpo_hpc.config.library import model_config
from grpo_hpc.config.support import untrainable
from grpo_hpc.errors import PlanError
from grpo_hpc.models.shape import ModelShape, read_shape
from grpo_hpc.plan.memory import Term, memory_terms
from grpo_hpc.plan.topology import Topology, make_topology


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        name: name of the run.
        device: ``cpu`` or ``cuda``.
        topology: the rank grid.
        schedule: batch sizes.
        train_iters: optimizer steps.
        shape: the model; None when its config is not on this machine.
        memory: rough bytes of the fullest rank; empty when ``shape`` is None.
        warnings: what the reader should know before starting.
    """

    name: str
    device: str
    topology: Topology
    schedule: BatchSchedule
    train_iters: int
    shape: ModelShape | None
    memory: tuple[Term, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-safe values; sizes in bytes, completions and prompts."""
        return {
            "name": self.name,
            "device": self.device,
            "topology": {
                **self.topology.sizes,
                "world_size": self.topology.world_size,
                "ranks": [asdict(place) for place in self.topology.places],
            },
            "schedule": {**asdict(self.schedule), "train_iters": self.train_iters},
            "model": None if self.shape is None else {**asdict(self.shape), "parameters": self.shape.parameters()},
            "memory_per_rank": [asdict(term) for term in self.memory],
            "warnings": list(self.warnings),
        }


def make_plan(cfg: RunConfig) -> Plan:
    """Plan a run.

    Reads the model's ``config.json`` from ``model.path``, or ``model.config`` while the folder is not there.

    Raises:
        ConfigError: the batch sizes do not fit together.
        PlanError: the model cannot be cut as asked.
        CheckpointError: the model's config cannot be read or its family is not supported.
    """
    sizes = schedule(cfg)
    par, res = cfg.parallel, cfg.resources
    topology = make_topology(
        res.nodes,
        res.nproc_per_node,
        tp=par.tensor_model_parallel_size,
        cp=par.context_parallel_size,
        pp=par.pipeline_model_parallel_size,
    )
    shape = _find_shape(cfg)
    warnings = [*untrainable(cfg), *_warnings(cfg, sizes, topology, shape)]
    memory: tuple[Term, ...] = ()
    if shape is not None:
        require_divisible(cfg, shape)
        memory = tuple(memory_terms(cfg, shape, sizes))
    return Plan(cfg.name, res.device, topology, sizes, cfg.batch.train_iters, shape, memory, tuple(warnings))


def require_divisible(cfg: RunConfig, shape: ModelShape) -> None:
    """Check that the model can be cut over the ranks as asked.

    Raises:
        PlanError: lists every size that does not divide, with the nearest sizes that do.
    """
    tp = cfg.parallel.tensor_model_parallel_size
    vllm_tp = cfg.rollout.vllm_tensor_parallel_size
    heads = {"query heads": shape.heads, "key/value heads": shape.kv_heads}
    checks = [
        ("parallel.tensor_model_parallel_size", tp, {**heads, "feed-forward width": shape.ffn}),
        ("parallel.pipeline_model_parallel_size", *_even_stages(cfg, shape.layers)),
        ("rollout.vllm_tensor_parallel_size", vllm_tp, {"query heads": shape.heads}),
    ]
    if (chunks := cfg.parallel.virtual_pipeline_model_parallel_size) is not None:
        per_stage = shape.layers // cfg.parallel.pipeline_model_parallel_size
        checks.append(("parallel.virtual_pipeline_model_parallel_size", chunks, {"layers of a stage": per_stage}))
    found = [line for key, size, counts in checks for line in _indivisible(key, size, counts)]
    if found:
        raise PlanError("the model cannot be cut as asked:\n" + "\n".join(f"  {line}" for line in found))


def _even_stages(cfg: RunConfig, layers: int) -> tuple[int, dict[str, int]]:
    """Stages that must have equally many layers, and how many layers they share."""
    par = cfg.parallel
    ends = [n for n in (par.decoder_first_pipeline_num_layers, par.decoder_last_pipeline_num_layers) if n is not None]
    what = "layers beside the first and last stage" if ends else "layers"
    return max(par.pipeline_model_parallel_size - len(ends), 1), {what: layers - sum(ends)}


def _indivisible(key: str, size: int, counts: dict[str, int]) -> list[str]:
    broken = [f"{count} {what} / {size}, remainder {count % size}" for what, count in counts.items() if count % size]
    if not broken:
        return []
    valid = [n for n in range(1, max(counts.values()) + 1) if all(count % n == 0 for count in counts.values())]
    below, above = max(n for n in valid if n < size), next((n for n in valid if n > size), None)
    nearest = f"{below} or {above}" if above is not None else str(below)
    return [f"{key} = {size} must divide {' and '.join(counts)}: {'; '.join(broken)}", f"  nearest values: {nearest}"]


def _find_shape(cfg: RunConfig) -> ModelShape | None:
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
    last = cfg.batch.train_iters - (sizes.rollouts - 1) * sizes.steps_per_rollout
    if last < sizes.steps_per_rollout:
        found.append(
            f"the last rollout serves {last} of {sizes.steps_per_rollout} steps: "
            f"train_iters {cfg.batch.train_iters} is not a multiple of steps_per_generation * num_iterations"
        )
    if (spanned := topology.nodes_spanned("tp")) > 1:
        found.append(f"tensor-parallel groups reach over {spanned} nodes: every layer waits for the network")
    return found


def _length_warnings(cfg: RunConfig, shape: ModelShape) -> list[str]:
    longest = cfg.rollout.vllm_max_model_len
    if longest is None and cfg.data.max_length is None:
        return [
            f"memory is counted for sequences of {shape.max_position} tokens, the model's longest: "
            "data.max_length or rollout.vllm_max_model_len would bound them"
        ]
    if longest is not None and longest > shape.max_position:
        return [
            f"rollout.vllm_max_model_len {longest} is beyond the model's longest sequence, {shape.max_position} tokens"
        ]
    return []
