"""Better layouts for a run: every legal one is tried, those that fit are ranked by tokens per second and GPU.

Only what changes speed and memory is touched, never what is learned: batch sizes, lengths and losses stay as they are.
Training and rollout are estimated apart and joined afterwards, because they meet in memory alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import Sizes, broken_rules, schedule, sizes_of
from grpo_hpc.config.load import problems_of
from grpo_hpc.config.problems import raise_problems
from grpo_hpc.config.sections import MOST_RANKS
from grpo_hpc.errors import PlanError
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.plan import memory
from grpo_hpc.plan.hardware import Hardware, read_hardware
from grpo_hpc.plan.layout_rules import broken
from grpo_hpc.plan.make import Estimate, estimate_of, find_shape
from grpo_hpc.plan.measured.pace import Pace
from grpo_hpc.plan.rollout_time import rollout
from grpo_hpc.plan.setup import Execution, Task, execution_of, require_lengths, stage_sizes, task_of
from grpo_hpc.plan.time import phase_seconds, training_seconds
from grpo_hpc.plan.topology import Degrees

KEEP = 10
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_MODES = ((0, False, False), (2, False, False), (2, False, True), (2, True, True))  # sleep, model and optimizer away


@dataclass(frozen=True)
class Result:
    """What a search over one number of nodes found.

    Attributes:
        best: at most ten layouts that fit, the fastest first.
        tried: layouts looked at.
        lost: why the others lost, with how many there were.
    """

    nodes: int
    best: tuple[Estimate, ...]
    tried: int
    lost: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "nodes": self.nodes,
            "tried": self.tried,
            "lost": self.lost,
            "best": [
                {
                    "keys": keys_of(found.execution),
                    "step": found.times.step if found.times else None,
                    "tokens_per_s_per_gpu": found.times.rate if found.times else None,
                    "peak_bytes": found.memory.peak.total,
                }
                for found in self.best
            ],
        }


@dataclass(frozen=True)
class _Sampling:
    """One way to run vLLM: its seconds and the share of the GPU that it takes."""

    tp: int
    share: float
    seconds: float


@dataclass(frozen=True)
class _Training:
    """One way to train: bytes of the fullest GPU without vLLM, while training and at rest, and seconds."""

    execution: Execution
    working: int
    model: int
    optimizer: int
    seconds: float


def search_run(
    cfg: RunConfig, average: int | None, nodes: Sequence[int] | None, pace: Pace | None = None
) -> list[Result]:
    """Search for the run's own number of nodes, or for each of ``nodes`` (those that train and sample together).

    Raises:
        PlanError: there is nothing to estimate with.
    """
    sizes = schedule(cfg)
    shape = find_shape(cfg)
    if shape is None:
        raise PlanError("a search needs the model's sizes", "Give model.config, a copy of the model's config.json.")
    if cfg.resources.device != "cuda":
        raise PlanError("a search is for GPUs; this run is on a CPU")
    require_lengths(cfg, shape)
    task = task_of(cfg, shape, sizes, average, pace)
    most = MOST_RANKS // cfg.resources.nproc_per_node
    if nodes and max(nodes) > most:
        raise PlanError(f"{max(nodes)} nodes are more than {MOST_RANKS} ranks", f"Search up to {most} nodes.")
    base, hardware = replace(execution_of(cfg, sizes, task), kv_gib=None), read_hardware(cfg.resources.gpu)
    wanted = list(nodes) if nodes is not None else [base.nodes + base.server_nodes]
    return [_search(task, base, sizes_of(cfg), hardware, count) for count in wanted]


def keys_of(execution: Execution) -> dict[str, Any]:
    """The keys of a run file that make it run like ``execution``; None stands for a key that is left out."""
    d = execution.degrees
    return {
        "resources.nodes": execution.nodes,
        "parallel.tensor_model_parallel_size": d.tp,
        "parallel.pipeline_model_parallel_size": d.pp,
        "parallel.context_parallel_size": d.cp,
        "parallel.expert_model_parallel_size": d.ep,
        "parallel.expert_tensor_parallel_size": d.etp,
        "parallel.virtual_pipeline_model_parallel_size": d.vpp if d.vpp > 1 else None,
        "parallel.decoder_first_pipeline_num_layers": execution.first_layers,
        "parallel.decoder_last_pipeline_num_layers": execution.last_layers,
        "parallel.sequence_parallel": execution.sequence_parallel,
        "parallel.recompute_granularity": None if execution.recompute == "none" else execution.recompute,
        "batch.micro_batch_size": execution.micro_batch or None,
        "batch.max_tokens_per_micro_batch": None if execution.micro_batch else execution.micro_tokens,
        "rollout.vllm_mode": "server" if execution.server_nodes else "colocate",
        "rollout.vllm_server_nodes": execution.server_nodes or None,
        "rollout.vllm_tensor_parallel_size": execution.engine_tp,
        "rollout.vllm_gpu_memory_utilization": execution.memory_share,
        "rollout.vllm_kv_cache_gib": None,
        "rollout.sleep_level": None if execution.server_nodes else execution.sleep_level,
        "rollout.offload_model": None if execution.server_nodes else execution.offload_model,
        "rollout.offload_optimizer": None if execution.server_nodes else execution.offload_optimizer,
    }


def changed_run(cfg: RunConfig, execution: Execution) -> RunConfig:
    """``cfg`` as it runs like ``execution``."""
    values = cfg.model_dump(exclude_unset=True)
    for dotted, value in keys_of(execution).items():
        section, key = dotted.split(".")
        part = values.setdefault(section, {})
        if value is None:
            part.pop(key, None)
        else:
            part[key] = value
    mistakes, changed = problems_of(values)
    raise_problems(mistakes, cfg.name, {})
    if changed is None:
        raise AssertionError("what is no run has at least one problem")
    return changed


def _search(task: Task, base: Execution, sizes: Sizes, hardware: Hardware, nodes: int) -> Result:
    lost: Counter[str] = Counter()
    found: list[tuple[float, Execution]] = []
    tried = 0
    for server_nodes in _splits(nodes):
        start = replace(base, server_nodes=server_nodes, recompute="none", recompute_modules=(), block_layers=0)
        samplings = _samplings(task, start, nodes - server_nodes, hardware)
        for training in _trainings(task, start, sizes, hardware, nodes - server_nodes, lost):
            tried += 1
            joined = _join(task, training, samplings, hardware)
            if joined is None:
                lost[_too_much(training, hardware)] += 1
            else:
                found.append(joined)
    found.sort(key=lambda item: (item[0] * item[1].gpus, item[1].micro_tokens))
    best: list[Estimate] = []
    shown: set[tuple[Any, ...]] = set()
    for _, execution in found:
        layout = (execution.degrees, execution.recompute, execution.server_nodes)
        if layout in shown:
            continue  # the same with another micro-batch
        shown.add(layout)
        estimate = estimate_of(task, execution, hardware)
        if estimate.verdict == "fits":
            best.append(estimate)
        else:
            lost["fits with less than 5 % of the GPU to spare, or its host does not"] += 1
        if len(best) == KEEP:
            break
    slower = len(found) - len(best)
    if slower > 0 and best:
        lost["fits, but is slower than the ten shown"] += slower
    return Result(nodes, tuple(best), tried + sum(n for why, n in lost.items() if why.startswith("rule")), dict(lost))


def _splits(nodes: int) -> list[int]:
    """Nodes of vLLM servers worth a try: none, a quarter, a half."""
    return sorted({0} | {k for k in (nodes // 4, nodes // 2) if 0 < k < nodes})


# -- rollout ----------------------------------------------------------------------------------------------------------


def _samplings(task: Task, base: Execution, train_nodes: int, hardware: Hardware) -> list[_Sampling]:
    """Every way to sample in which the weights and at least one whole sequence fit, the fastest first."""
    found = []
    pace = task.pace.factor("rollout") if task.pace else 1.0
    shares = (0.9,) if base.server_nodes else _SHARES
    ranks = (base.server_nodes or train_nodes) * base.per_node
    for tp in (1, 2, 4, 8, 16):
        if tp > ranks or ranks % tp or task.shape.heads % tp or (tp > base.per_node and tp % base.per_node):
            continue
        if task.generation % (ranks // tp):
            continue
        for share in shares:
            execution = replace(base, degrees=Degrees(train_nodes * base.per_node), engine_tp=tp, memory_share=share)
            kv = next(t.bytes for t in memory.engine_terms(task, execution, hardware) if t.name == "KV cache")
            if kv >= memory.kv_bytes_per_token(task, execution) * task.longest:
                seconds = sum(part.seconds for part in rollout(task, execution, hardware)) * pace
                found.append(_Sampling(tp, share, seconds))
    return sorted(found, key=lambda sampling: (sampling.seconds, sampling.share))


# -- training ---------------------------------------------------------------------------------------------------------


def _trainings(
    task: Task, base: Execution, sizes: Sizes, hardware: Hardware, nodes: int, lost: Counter[str]
) -> Iterator[_Training]:
    for execution in _layouts(task, base, nodes):
        if wrong := broken(task.shape, execution):
            lost[f"rule: {wrong[0].key.rsplit('.', 1)[-1]} does not fit the model"] += 1
            continue
        if _broken_batch(sizes, execution, nodes):
            lost["rule: the batch sizes do not come out even"] += 1
            continue
        for micro_batch, micro_tokens in _micro_batches(task, base):
            for recompute in ("none", "full"):
                tried = replace(execution, micro_batch=micro_batch, micro_tokens=micro_tokens, recompute=recompute)
                yield _training(task, tried, hardware)


def _layouts(task: Task, base: Execution, nodes: int) -> Iterator[Execution]:
    world, shape = nodes * base.per_node, task.shape
    for tp in (size for size in (1, 2, 4, 8) if size <= base.per_node and world % size == 0):
        for pp in (size for size in (1, 2, 3, 4, 6, 8, 12, 16) if size <= shape.layers and world % (tp * size) == 0):
            first, last = _ends(shape, pp)
            for cp in (size for size in (1, 2, 4, 8) if task.longest >= 4096 * size or size == 1):
                if world % (tp * pp * cp):
                    continue
                for ep, etp in _expert_sizes(shape, world // pp, tp):
                    for vpp in _chunks(shape, pp, first is not None):
                        yield replace(
                            base,
                            degrees=Degrees(world, tp=tp, cp=cp, pp=pp, ep=ep, etp=etp, vpp=vpp),
                            sequence_parallel=tp > 1,
                            first_layers=first,
                            last_layers=last,
                        )


def _ends(shape: ModelShape, pp: int) -> tuple[int | None, int | None]:
    """Layers of the first and last stage where the layers do not divide: the most even way, the ends having less."""
    if shape.layers % pp == 0 or pp == 1:
        return None, None
    each = -(-shape.layers // pp)
    ways = [(f, each) for f in range(each, 0, -1)] + [
        (f, last) for f in range(each, 0, -1) for last in (f, f - 1) if last
    ]
    for first, last in ways:
        middle = stage_sizes(shape.layers, pp, first, last)
        if sum(middle) == shape.layers and min(middle) > 0 and max(middle) <= each:
            return first, last
    return None, None


def _expert_sizes(shape: ModelShape, ranks: int, tp: int) -> list[tuple[int, int]]:
    if shape.experts is None:
        return [(1, 1)]
    found = []
    for etp in {1, tp}:
        ep = 1
        while ep <= shape.experts.count and ranks % (ep * etp) == 0:
            found.append((ep, etp))
            ep *= 2
    return sorted(found)


def _chunks(shape: ModelShape, pp: int, uneven: bool) -> list[int]:
    if pp == 1 or uneven:
        return [1]
    return [1, *(n for n in (2, 4) if shape.layers % (pp * n) == 0)]


def _micro_batches(task: Task, base: Execution) -> list[tuple[int, int]]:
    """The run's own micro-batch, and token budgets of one, two and four of the longest sequences."""
    own = (base.micro_batch, base.micro_tokens)
    budgets = [(0, n * task.longest) for n in (1, 2, 4)]
    return [own, *(budget for budget in budgets if budget != own)]


def _broken_batch(sizes: Sizes, execution: Execution, nodes: int) -> bool:
    d = execution.degrees
    return bool(
        broken_rules(
            sizes._replace(
                nodes=nodes,
                tensor_model_parallel_size=d.tp,
                pipeline_model_parallel_size=d.pp,
                context_parallel_size=d.cp,
                expert_model_parallel_size=d.ep,
                expert_tensor_parallel_size=d.etp,
                micro_batch_size=1,
                vllm_mode="server" if execution.server_nodes else "colocate",
                vllm_server_nodes=execution.server_nodes or 1,
                vllm_tensor_parallel_size=1,
            )
        )
    ) and not _even(sizes, execution)


def _even(sizes: Sizes, execution: Execution) -> bool:
    """The rules of a step alone: those of the rollout depend on the engines, which are chosen later."""
    prompts = sizes.global_batch_size // sizes.num_generations
    return prompts % execution.degrees.dp == 0 and sizes.global_batch_size % sizes.num_generations == 0


def _training(task: Task, execution: Execution, hardware: Hardware) -> _Training:
    last = execution.degrees.pp - 1
    fullest = max((memory.training_bytes(task, execution, stage) for stage in {0, last}), key=lambda found: found[0])
    seconds = training_seconds(task, execution, hardware)
    return _Training(execution, *fullest, seconds)


# -- together ---------------------------------------------------------------------------------------------------------


def _join(
    task: Task, training: _Training, samplings: list[_Sampling], hardware: Hardware
) -> tuple[float, Execution] | None:
    """The fastest way to put a training and a sampling on the same GPUs, with its seconds; None when none fits."""
    room = int(hardware.memory * (1 - memory.MARGIN))
    best: tuple[float, Execution] | None = None
    for sleep, away_model, away_optimizer in [(0, False, False)] if training.execution.server_nodes else _MODES:
        execution = replace(
            training.execution, sleep_level=sleep, offload_model=away_model, offload_optimizer=away_optimizer
        )
        stays = (0 if away_model else training.model) + (0 if away_optimizer else training.optimizer)
        base = sum(term.bytes for term in memory.base_terms(execution))
        for sampling in samplings:
            engine = 0 if execution.server_nodes else int(sampling.share * hardware.memory)
            resting = (memory.ASLEEP if sleep else engine) if not execution.server_nodes else 0
            if training.working + resting > room or base + stays + engine > room:
                continue
            chosen = replace(execution, engine_tp=sampling.tp, memory_share=sampling.share)
            moves = phase_seconds("offload", task, chosen, hardware)
            seconds = sampling.seconds + training.seconds + moves
            if best is None or seconds < best[0]:
                best = (seconds, chosen)
            break  # samplings come fastest first
    return best


def _too_much(training: _Training, hardware: Hardware) -> str:
    if training.working > hardware.memory * (1 - memory.MARGIN):
        return "training does not fit into the GPU"
    return "training and vLLM do not fit together"
