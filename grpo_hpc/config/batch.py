"""The batch arithmetic. Every batch size counts completions; the rules live here and nowhere else.

    world      = nodes * nproc_per_node
    dp         = world / (tp * pp * cp)
    expert dp  = world / (etp * ep * pp)
    global     = micro * dp * accumulation
    generation = global * steps_per_generation

Every division must come out whole; those of a rollout over its engines need not, and are no rule. A broken rule is
shown as its equation, with the numbers; the nearest values that satisfy all rules at once are found in
:mod:`grpo_hpc.config.nearest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from grpo_hpc.config.sections import RunConfig
from grpo_hpc.errors import ConfigError

MOST_SEQUENCES = 512  # of which vLLM makes one CUDA graph; more would each be started kernel by kernel
LEAST_SEQUENCES = 64  # so that an evaluation is not cut into small parts


@dataclass(frozen=True)
class BatchSchedule:
    """How many completions and prompts each rank handles, and when. Sizes count completions unless named prompts.

    Attributes:
        world_size: training processes.
        dp: data-parallel replicas of the model.
        max_tokens_per_micro_batch: tokens per forward pass on one replica; then the next two say nothing.
        micro_batch_size: completions per forward pass on one replica.
        accumulation: forward passes per optimizer step on one replica.
        global_batch_size: completions per optimizer step.
        steps_per_generation: optimizer steps that one pass over a rollout makes.
        num_iterations: passes over each rollout.
        generation_batch_size: completions per rollout.
        num_generations: completions per prompt.
        prompts_per_rollout: prompts per rollout.
        prompts_per_step: prompts per optimizer step.
        engines: vLLM engines that share a rollout.
        completions_per_rank_per_rollout: completions that the vLLM engine of one rank generates per rollout, or one
            less where they do not come out even; with vllm_tensor_parallel_size > 1 the ranks of one engine share them.
        rollouts: rollouts of the whole run, None while its steps are not known; the last one may serve fewer steps than
            the others.
    """

    world_size: int
    dp: int
    max_tokens_per_micro_batch: int | None
    micro_batch_size: int
    accumulation: int
    global_batch_size: int
    steps_per_generation: int
    num_iterations: int
    generation_batch_size: int
    num_generations: int
    prompts_per_rollout: int
    prompts_per_step: int
    engines: int
    completions_per_rank_per_rollout: int
    rollouts: int | None

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps made from one rollout."""
        return self.steps_per_generation * self.num_iterations


class Sizes(NamedTuple):
    """The keys that take part, under their names in the run file."""

    nodes: int
    nproc_per_node: int
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    context_parallel_size: int
    expert_model_parallel_size: int
    expert_tensor_parallel_size: int
    micro_batch_size: int
    global_batch_size: int
    steps_per_generation: int | None
    generation_batch_size: int | None
    num_generations: int
    vllm_mode: str
    vllm_server_nodes: int
    vllm_tensor_parallel_size: int
    loss_scaling: str

    @property
    def world(self) -> int:
        return self.nodes * self.nproc_per_node

    @property
    def rollout_world(self) -> int:
        """Ranks that sample: those that train, or those of the servers' nodes."""
        return self.world if self.vllm_mode == "colocate" else self.vllm_server_nodes * self.nproc_per_node

    @property
    def footprint(self) -> int:
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def expert_footprint(self) -> int:
        experts = self.expert_tensor_parallel_size * self.expert_model_parallel_size
        return experts * self.pipeline_model_parallel_size

    @property
    def generation(self) -> int:
        if self.generation_batch_size is not None:
            return self.generation_batch_size
        return self.global_batch_size * (self.steps_per_generation or 1)


class BrokenRule(NamedTuple):
    """A rule that does not hold: in words, in symbols, in numbers, and the keys that could mend it."""

    says: str
    symbols: str
    numbers: str
    keys: tuple[str, ...]


_EXPERT_KEYS = ("expert_model_parallel_size", "expert_tensor_parallel_size")
_WORLD_KEYS = (
    "nproc_per_node",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
)


def engine_sequences(share: int, limit: int | None) -> int:
    """Completions that an engine works on at a time.

    Args:
        share: that it makes in a rollout.
        limit: what the run file says.
    """
    return limit or min(MOST_SEQUENCES, max(LEAST_SEQUENCES, share))


def schedule(cfg: RunConfig) -> BatchSchedule:
    """The batch schedule of a run.

    Raises:
        ConfigError: a division does not come out whole, or two keys contradict each other.
    """
    sizes = sizes_of(cfg)
    if broken := broken_rules(sizes):
        raise ConfigError("\n".join(equations(broken)))
    dp, generation = sizes.world // sizes.footprint, sizes.generation
    steps = generation // sizes.global_batch_size
    engines = sizes.rollout_world // sizes.vllm_tensor_parallel_size
    return BatchSchedule(
        world_size=sizes.world,
        dp=dp,
        max_tokens_per_micro_batch=cfg.batch.max_tokens_per_micro_batch,
        micro_batch_size=sizes.micro_batch_size,
        accumulation=sizes.global_batch_size // (sizes.micro_batch_size * dp),
        global_batch_size=sizes.global_batch_size,
        steps_per_generation=steps,
        num_iterations=cfg.batch.num_iterations,
        generation_batch_size=generation,
        num_generations=sizes.num_generations,
        prompts_per_rollout=generation // sizes.num_generations,
        prompts_per_step=sizes.global_batch_size // sizes.num_generations,
        engines=engines,
        completions_per_rank_per_rollout=-(-generation // engines),
        rollouts=_rollouts(cfg.batch.train_iters, steps * cfg.batch.num_iterations),
    )


def _rollouts(steps: int | None, each: int) -> int | None:
    return None if steps is None else -(-steps // each)


def steps_of_epochs(epochs: int, rows: int, num_generations: int, global_batch_size: int) -> int:
    """Optimizer steps in which a run goes over its rows so many times; at least one."""
    return max(rows * num_generations * epochs // global_batch_size, 1)


def sequences_of(cfg: RunConfig) -> int:
    """:func:`engine_sequences` of a run."""
    return engine_sequences(schedule(cfg).completions_per_rank_per_rollout, cfg.rollout.vllm_max_num_seqs)


def equations(broken: Sequence[BrokenRule]) -> list[str]:
    """Lines that show every broken rule in words, in symbols and in numbers."""
    lines = ["the batch sizes do not fit together"]
    for rule in broken:
        lines += [f"- {rule.says}", f"    {rule.symbols}", f"    {rule.numbers}"]
    return lines


def sizes_of(cfg: RunConfig) -> Sizes:
    """The keys of ``cfg`` that take part in the batch arithmetic."""
    sections = (cfg.resources, cfg.parallel, cfg.batch, cfg.rollout, cfg.algorithm)
    values = {key: getattr(part, key) for part in sections for key in Sizes._fields if key in type(part).model_fields}
    return Sizes(**values)


def broken_rules(s: Sizes) -> list[BrokenRule]:
    """Every rule that ``s`` breaks. Rules that build on a broken one are not looked at."""
    if broken := _broken_world(s):
        return broken
    if broken := _broken_generation(s):
        return broken
    if broken := _broken_step(s):
        return broken
    return refused_by_ms_swift(s) if s.loss_scaling == "ms_swift" else []


def _broken_world(s: Sizes) -> list[BrokenRule]:
    found: list[BrokenRule] = []
    if rest := s.world % s.footprint:
        tp, pp, cp = s.tensor_model_parallel_size, s.pipeline_model_parallel_size, s.context_parallel_size
        found.append(
            BrokenRule(
                "the ranks must be a multiple of tp * pp * cp, the ranks that hold one replica of the model",
                "dp = nodes * nproc_per_node / (tp * pp * cp)",
                f"{s.nodes} * {s.nproc_per_node} / ({tp} * {pp} * {cp}) = {s.world} / {s.footprint}, remainder {rest}",
                _WORLD_KEYS,
            )
        )
    if rest := s.world % s.expert_footprint:
        etp, ep, pp = s.expert_tensor_parallel_size, s.expert_model_parallel_size, s.pipeline_model_parallel_size
        found.append(
            BrokenRule(
                "the ranks must be a multiple of etp * ep * pp, the ranks that hold one replica of the experts",
                "expert dp = nodes * nproc_per_node / (etp * ep * pp)",
                f"{s.nodes} * {s.nproc_per_node} / ({etp} * {ep} * {pp}) = "
                f"{s.world} / {s.expert_footprint}, remainder {rest}",
                ("nproc_per_node", *_EXPERT_KEYS, "pipeline_model_parallel_size"),
            )
        )
    nodes_key = "nodes" if s.vllm_mode == "colocate" else "vllm_server_nodes"
    if rest := s.rollout_world % s.vllm_tensor_parallel_size:
        found.append(
            BrokenRule(
                "the ranks must be a multiple of vllm_tensor_parallel_size, the ranks that share one vLLM engine",
                f"engines = {nodes_key} * nproc_per_node / vllm_tensor_parallel_size",
                f"{getattr(s, nodes_key)} * {s.nproc_per_node} / {s.vllm_tensor_parallel_size}, remainder {rest}",
                ("nproc_per_node", "vllm_tensor_parallel_size"),
            )
        )
    return found


def _broken_generation(s: Sizes) -> list[BrokenRule]:
    generation, steps = s.generation_batch_size, s.steps_per_generation
    if generation is None:
        return []
    if steps is not None and generation != s.global_batch_size * steps:
        return [
            BrokenRule(
                "generation_batch_size and steps_per_generation contradict each other; one of them is enough",
                "generation_batch_size = global_batch_size * steps_per_generation",
                f"{s.global_batch_size} * {steps} = {s.global_batch_size * steps}, but {generation} was given",
                ("generation_batch_size", "steps_per_generation"),
            )
        ]
    if rest := generation % s.global_batch_size:
        return [
            BrokenRule(
                "a rollout must serve whole optimizer steps",
                "steps_per_generation = generation_batch_size / global_batch_size",
                f"{generation} / {s.global_batch_size}, remainder {rest}",
                ("generation_batch_size", "global_batch_size"),
            )
        ]
    return []


def _broken_step(s: Sizes) -> list[BrokenRule]:
    """Rules of one optimizer step: whole groups, and as many completions on every replica."""
    dp, micro, size, group = s.world // s.footprint, s.micro_batch_size, s.global_batch_size, s.num_generations
    found: list[BrokenRule] = []
    if rest := size % (micro * dp):
        found.append(
            BrokenRule(
                "an optimizer step must be whole micro-batches on every data-parallel rank",
                "accumulation = global_batch_size / (micro_batch_size * dp)",
                f"{size} / ({micro} * {dp}) = {size} / {micro * dp}, remainder {rest}",
                ("global_batch_size", "micro_batch_size", "nproc_per_node"),
            )
        )
    if rest := size % group:
        found.append(
            BrokenRule(
                "an optimizer step must hold whole groups of completions",
                "prompts per step = global_batch_size / num_generations",
                f"{size} / {group}, remainder {rest}",
                ("global_batch_size", "num_generations"),
            )
        )
    return found


def refused_by_ms_swift(s: Sizes) -> list[BrokenRule]:
    """The rule of ms-swift that it deals whole prompts to data-parallel ranks, in portions of ``micro_batch_size``.

    Nothing here needs it: completions are dealt one by one. ``s`` keeps all other rules.
    """
    dp, micro, group = s.world // s.footprint, s.micro_batch_size, s.num_generations
    prompts = s.generation // group
    if not (rest := prompts % (dp * micro)):
        return []
    return [
        BrokenRule(
            "ms-swift deals the prompts of a rollout to the data-parallel ranks in portions of micro_batch_size",
            "generation_batch_size / num_generations / (dp * micro_batch_size)",
            f"{s.generation} / {group} / ({dp} * {micro}) = {prompts} / {dp * micro}, remainder {rest}",
            ("micro_batch_size", "global_batch_size", "num_generations"),
        )
    ]
