"""The batch arithmetic in words, from the rows of the data set to optimizer steps."""

from __future__ import annotations

from grpo_hpc.plan.make import Plan


def batch_lines(plan: Plan) -> list[str]:
    """One sentence for each link of the chain, with its numbers."""
    s = plan.schedule
    each = f"{s.completions_per_rank_per_rollout:,} completions each"
    if s.generation_batch_size % s.engines:
        each = f"{s.completions_per_rank_per_rollout - 1:,} or {each}"
    sentences = [
        f"A rollout takes {s.prompts_per_rollout:,} rows of the data set and samples {s.num_generations} completions "
        f"of each: {s.prompts_per_rollout:,} * {s.num_generations} = {s.generation_batch_size:,} completions "
        f"(generation_batch_size).",
        f"{s.engines:,} vLLM engines share them: {s.generation_batch_size:,} / {s.engines:,} = {each}.",
        f"Rewards are compared inside each prompt's group of {s.num_generations}; that gives the advantages.",
        f"The rollout is cut into {s.generation_batch_size:,} / {s.global_batch_size:,} = "
        f"{s.steps_per_generation:,} optimizer steps (steps_per_generation) of {s.global_batch_size:,} completions, "
        f"{s.prompts_per_step:,} whole groups (global_batch_size).",
    ]
    if s.num_iterations > 1:
        sentences.append(
            f"The optimizer goes over it {s.num_iterations} times (num_iterations): {s.steps_per_rollout:,} steps."
        )
    passes = f"{s.accumulation:,} forward and backward passes of {s.micro_batch_size:,} (micro_batch_size)"
    if s.max_tokens_per_micro_batch is not None:
        passes = f"passes of up to {s.max_tokens_per_micro_batch:,} tokens (max_tokens_per_micro_batch)"
    sentences += [
        f"In a step each of the {s.dp:,} data-parallel ranks (world {s.world_size:,} / (tp * pp * cp)) trains on "
        f"{s.global_batch_size:,} / {s.dp:,} = {s.global_batch_size // s.dp:,} completions, in {passes}.",
    ]
    if plan.train_iters is not None and s.rollouts is not None:
        rows = s.prompts_per_rollout * s.rollouts
        sentences.append(f"{plan.train_iters:,} steps need {s.rollouts:,} rollouts and {rows:,} rows.")
    return [f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1)]
