"""Every metric of a run in one table: what it is called, its unit and its meaning.

The live view takes its labels from here, and docs/metrics.md is this table:

    python -m grpo_hpc.observe.metrics > docs/metrics.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        unit: of the value; empty for a plain number or a fraction.
        meaning: one sentence.
        label: short name for the live view.
        form: format specification of the value.
    """

    unit: str
    meaning: str
    label: str
    form: str = ".3f"

    def show(self, value: float | None) -> str:
        """``value`` as people read it, with its unit."""
        if value is None:
            return "nan"
        number = format(value, self.form) if self.seen(value) else "0"
        return f"{number} {self.unit}" if self.unit else number

    def seen(self, value: float) -> float:
        """``value`` rounded to what :meth:`show` shows of it."""
        return float(format(value, self.form))


_SECONDS, _SPEED = "s", "tok/s"

METRICS: dict[str, Metric] = {
    "reward/mean": Metric("", "Mean weighted reward of the rollout's completions.", "reward"),
    "reward/std": Metric("", "Standard deviation of that reward over all completions of the rollout.", "reward spread"),
    "reward/zero_variance_groups": Metric(
        "", "Fraction of groups whose completions all got the same reward; they teach nothing.", "groups alike", ".2f"
    ),
    "rewards/<name>/mean": Metric("", "Mean of one reward function, over the completions it gave a score.", "<name>"),
    "rewards/<name>/std": Metric("", "Standard deviation of one reward function over them.", "<name> spread"),
    "rewards/<name>/failures": Metric(
        "", "Completions that the function failed on after all retries, time-outs included.", "<name> failed", ".0f"
    ),
    "rewards/<name>/timeouts": Metric("", "Those of them that ran out of time.", "<name> timed out", ".0f"),
    "eval/<name>/mean": Metric(
        "",
        "The same for one greedy completion of each held-out prompt, with the weights of this step.",
        "<name>",
    ),
    "eval/mean_length": Metric("tok", "Mean length of those greedy completions.", "held-out length", ".1f"),
    "loss": Metric("", "Loss of the optimizer step, KL term and entropy bonus included.", "loss", ".4f"),
    "kl": Metric("", "Estimated KL divergence from the reference policy, per token; 0 when beta is 0.", "KL", ".4f"),
    "entropy": Metric("nat", "Mean entropy of the policy's next-token distribution.", "entropy"),
    "entropy/completion_max": Metric("nat", "Largest mean entropy of a completion.", "highest entropy"),
    "entropy/completion_min": Metric("nat", "Smallest mean entropy of a completion.", "lowest entropy"),
    "clip_ratio/region_mean": Metric(
        "", "Fraction of tokens whose probability ratio was clipped: the update wanted to go further.", "clip fraction"
    ),
    "clip_ratio/low_mean": Metric(
        "", "Fraction of tokens clipped at the lower bound: the advantage is negative.", "clipped low"
    ),
    "clip_ratio/high_mean": Metric(
        "", "Fraction of tokens clipped at an upper bound, those of cispo and of delta included.", "clipped high"
    ),
    "ratio/mean_abs_error": Metric(
        "",
        "Mean distance of the probability ratio from 1; 0 in an on-policy step.",
        "ratio - 1",
        ".1e",
    ),
    "ratio/max": Metric("", "Largest importance weight of a token (of a completion with GSPO).", "largest ratio"),
    "ratio/min": Metric("", "Smallest importance weight of a token (of a completion with GSPO).", "smallest ratio"),
    "mask/tokens_kept": Metric(
        "",
        "Fraction of tokens that neither the entropy threshold nor staleness takes out of the policy loss.",
        "tokens kept",
    ),
    "mask/stale_completions": Metric(
        "", "Fraction of completions with a negative advantage that off_policy_sequence_mask_delta took out.", "stale"
    ),
    "staleness/mean": Metric(
        "steps",
        "Optimizer steps between the weights that sampled a completion and those that it updates.",
        "age",
        ".1f",
    ),
    "staleness/max": Metric("steps", "The same for the oldest completion of the step.", "oldest", ".0f"),
    "mismatch/logprob_abs_diff": Metric(
        "nat",
        "Mean distance of the engine's log-probabilities from the trainer's.",
        "mismatch",
        ".4f",
    ),
    "mismatch/kl": Metric(
        "nat",
        "Mean of log rollout - log old: KL divergence of the trainer's policy from the engine's (k1).",
        "mismatch KL",
        ".4f",
    ),
    "mismatch/k3_kl": Metric("nat", "The same divergence by the estimator k3.", "mismatch k3", ".4f"),
    "mismatch/chi2_token": Metric(
        "", "Chi-square divergence of the two: mean of squared token ratios, minus 1.", "chi-square", ".4f"
    ),
    "mismatch/chi2_completion": Metric(
        "", "The same of the geometric mean ratio of each completion.", "chi-square, completions", ".4f"
    ),
    "mismatch/training_ppl": Metric(
        "", "Mean perplexity of the completions under the trainer.", "trainer perplexity", ".3f"
    ),
    "mismatch/rollout_ppl": Metric(
        "", "Mean perplexity of the completions under the engine.", "engine perplexity", ".3f"
    ),
    "mismatch/ppl_ratio": Metric("", "Mean over completions of the first over the second.", "perplexity ratio", ".4f"),
    "mismatch/training_log_ppl": Metric(
        "nat", "Mean over completions of the logarithm of the trainer's perplexity.", "trainer log-perplexity", ".4f"
    ),
    "mismatch/rollout_log_ppl": Metric("nat", "The same of the engine's.", "engine log-perplexity", ".4f"),
    "mismatch/log_ppl_abs_diff": Metric(
        "nat", "Mean over completions of the distance of the two.", "log-perplexity distance", ".4f"
    ),
    "mismatch/log_ppl_diff_max": Metric(
        "nat", "Largest difference of the two, trainer minus engine.", "largest difference", ".4f"
    ),
    "mismatch/log_ppl_diff_min": Metric("nat", "Smallest difference of the two.", "smallest difference", ".4f"),
    "rollout_correction/weight_mean": Metric(
        "",
        "Mean weight of the rollout correction; only with rollout_importance_sampling_mode.",
        "correction weight",
        ".4f",
    ),
    "rollout_correction/effective_sample_size": Metric(
        "",
        "Share of tokens that would count as much if all weights were equal: (sum w)^2 / (N sum w^2).",
        "effective sample",
        ".4f",
    ),
    "rollout_correction/outside_bounds": Metric(
        "", "Fraction of tokens whose weight was bounded or masked.", "out of bounds", ".4f"
    ),
    "grad_norm": Metric("", "Global gradient norm before clipping.", "gradient norm"),
    "skipped_updates": Metric(
        "",
        "Optimizer steps in a row, up to this one, whose update was skipped because the loss or the gradient was not "
        "finite; 0 after an update.",
        "skipped updates",
        ".0f",
    ),
    "learning_rate": Metric("", "Learning rate of the optimizer step.", "learning rate", ".1e"),
    "completions/mean_length": Metric("tok", "Mean length of the rollout's completions.", "length", ".1f"),
    "completions/min_length": Metric("tok", "Length of the shortest completion.", "shortest", ".0f"),
    "completions/mean_terminated_length": Metric(
        "tok", "Mean length of the completions that were not cut off.", "ended by itself", ".1f"
    ),
    "completions/max_length": Metric("tok", "Length of the longest completion.", "longest", ".0f"),
    "completions/clipped_ratio": Metric(
        "", "Fraction of completions that were cut off at max_completion_length.", "cut off", ".2f"
    ),
    "completions/given_up": Metric(
        "",
        "Completions that the engine gave up, or left empty; they are not scored and teach nothing.",
        "given up",
        ".0f",
    ),
    "completions/tokens": Metric("tok", "Tokens sampled in the rollout.", "sampled", ".0f"),
    "dynamic/rounds": Metric(
        "", "Rounds of sampling that the rollout took; only with dynamic_sample.", "rounds", ".0f"
    ),
    "dynamic/dropped_groups": Metric("", "Groups of equal rewards that were thrown away.", "groups dropped", ".0f"),
    "dynamic/filled_groups": Metric(
        "", "Groups of equal rewards that fill the batch, because the rounds were used up.", "groups filled in", ".0f"
    ),
    "dynamic/carried_completions": Metric("", "Completions kept for the next rollout.", "carried over", ".0f"),
    "episodes/turns": Metric(
        "",
        "Turns of the policy in an episode, on average. Like all that begins with episodes: only with an environment.",
        "turns",
        ".2f",
    ),
    "episodes/tool_calls": Metric("", "Calls of tools in an episode, on average.", "tool calls", ".2f"),
    "episodes/tool_failures": Metric(
        "", "Of these, calls that failed: unknown tools, bad arguments, errors.", "failed calls", ".2f"
    ),
    "episodes/environment_s": Metric(
        "s", "Time in which an episode waited for its environment, on average.", "in tools", ".2f"
    ),
    "episodes/policy_s": Metric("s", "Time in which an episode waited for the policy, on average.", "in model", ".2f"),
    "episodes/too_many_turns": Metric("", "Episodes that max_turns ended.", "too many turns", ".0f"),
    "episodes/failed": Metric("", "Episodes whose environment failed.", "failed episodes", ".0f"),
    "tokens/scored": Metric("tok", "Completion tokens in the loss of the optimizer step.", "trained on", ".0f"),
    "moe/load_max_over_mean": Metric(
        "",
        "Tokens of the busiest expert over those of the mean one, mean over layers; 1 where all are used alike. Like "
        "all that begins with moe: over all tokens of the training passes, only for models with experts.",
        "busiest expert",
        ".2f",
    ),
    "moe/load_entropy": Metric(
        "", "Entropy of the tokens' distribution over experts, over its maximum; mean over layers.", "expert entropy"
    ),
    "moe/max_violation": Metric(
        "", "Busiest expert over the mean one, minus 1, in the worst layer.", "worst imbalance", ".2f"
    ),
    "moe/layer_<n>/max_violation": Metric("", "The same of one layer with experts.", "imbalance <n>", ".2f"),
    "moe/idle_experts": Metric("", "Experts that got no token, in the layer with the most.", "idle experts", ".0f"),
    "moe/aux_loss": Metric(
        "", "Balance loss without its weight, mean over layers; 1 where all experts are used alike.", "balance loss"
    ),
    "moe/z_loss": Metric("", "Z-loss of the routers without its weight, mean over layers.", "z-loss"),
    "moe/replay_changed": Metric(
        "", "Share of choices of experts that the router would now make otherwise; with router replay.", "replayed"
    ),
    "packing/micro_batches": Metric("", "Forward passes of the optimizer step on each rank.", "micro-batches", ".0f"),
    "packing/tokens_per_micro_batch": Metric("tok", "Mean tokens of a micro-batch, without padding.", "packed", ".0f"),
    "packing/padding_fraction": Metric(
        "", "Fraction of the micro-batches' tokens that is padding; 0 unless cp or sequence parallel.", "padding"
    ),
    "packing/imbalance": Metric(
        "",
        "Operations of the costliest micro-batch of each round beyond the mean of the data-parallel ranks, which wait.",
        "imbalance",
    ),
    "throughput/rollout_tokens_per_s": Metric(_SPEED, "Tokens sampled per second of rollout.", "rollout", ".0f"),
    "throughput/train_tokens_per_s": Metric(
        _SPEED, "Prompt and completion tokens trained on per second of the train phase.", "training", ".0f"
    ),
    "throughput/sync_gb_per_s": Metric(
        "GB/s", "Weights handed to each engine per second of sync, in the engine's precision.", "sync", ".2f"
    ),
    "sync/tensors_compared": Metric(
        "",
        "Weight tensors, chosen anew at each sync, whose hash inside the engine was found equal to what was sent.",
        "compared",
        ".0f",
    ),
    "memory/peak_gib": Metric(
        "GiB", "Most memory that the first rank has held on its device so far (CPU: in the host).", "peak memory", ".1f"
    ),
    "memory/peak_gib/<phase>": Metric("GiB", "The same in one phase; not on a CPU.", "peak of a phase", ".1f"),
    "time/step": Metric(_SECONDS, "The whole step, without evaluation and saving.", "step", ".1f"),
    "time/sync": Metric(_SECONDS, "Handing the new weights to the engine.", "sync", ".1f"),
    "time/rollout": Metric(_SECONDS, "Sampling completions.", "rollout", ".1f"),
    "time/reward": Metric(_SECONDS, "Scoring them and gathering them from all ranks.", "reward", ".1f"),
    "time/offload": Metric(
        _SECONDS,
        "Moving weights, optimizer state and engine on and off the device.",
        "offload",
        ".1f",
    ),
    "time/logprob": Metric(_SECONDS, "Old and reference log-probabilities.", "logprob", ".1f"),
    "time/train": Metric(_SECONDS, "Forward, backward and optimizer step.", "train", ".1f"),
}

PHASES: dict[str, str] = {
    "start": "loading model and engine",
    "sync": "handing weights to the engine",
    "canary": "comparing log-probabilities of engine and trainer",
    "rollout": "sampling completions",
    "reward": "scoring completions",
    "offload": "making room on the device",
    "logprob": "computing log-probabilities",
    "train": "training",
    "eval": "answering held-out prompts",
    "save": "saving a checkpoint",
    "export": "writing the Hugging Face folder",
}


def lookup(name: str) -> Metric | None:
    """The table's entry for the metric ``name``, or None; names of reward functions fill in ``<name>``."""
    pattern = re.sub(r"^(rewards|eval)/.+/(mean|std|failures|timeouts)$", r"\1/<name>/\2", name)
    pattern = re.sub(r"^memory/peak_gib/.+$", "memory/peak_gib/<phase>", pattern)
    return METRICS.get(re.sub(r"^moe/layer_\d+/", "moe/layer_<n>/", pattern))


def in_order(names: Iterable[str]) -> list[str]:
    """Every name once, in the order of the table; what it does not know comes last."""
    rows = list(METRICS.values())
    place = {name: len(rows) if (metric := lookup(name)) is None else rows.index(metric) for name in names}
    return sorted(place, key=lambda name: place[name])


def reward_name(name: str) -> str:
    """``exact`` of ``rewards/exact/mean`` or ``eval/exact/mean``."""
    return name.partition("/")[2].rpartition("/")[0]


def markdown() -> str:
    """The table as a page of documentation."""
    rows = [f"| `{name}` | {metric.unit or '-'} | {metric.meaning} |" for name, metric in METRICS.items()]
    phases = [f"| `{name}` | {meaning} |" for name, meaning in PHASES.items()]
    return "\n".join([_HEAD, *rows, _PHASES_HEAD, *phases, ""])


_HEAD = """# Metrics

A run writes one row per optimizer step to `metrics.jsonl` in its run directory, and the same values under the same
names to what `logging.report_to` names: TensorBoard (the default), wandb and SwanLab.
Each row has `step`, counted from 1, and `time`, in seconds since 1970. Evaluations are rows of their own, with the
number of steps made before them (0: the untrained model). A value that is not finite is written as `null`. Metrics of a
rollout appear with the first optimizer step made from it. Unless a meaning says otherwise, values are over all ranks.

`mismatch/*` compare vLLM with the trainer. With `top_p` below 1, a `top_k` or a `min_p`, vLLM's log-probabilities are
of the tokens that may be sampled and the trainer's of all tokens: every difference of the two then holds the logarithm
of the mass that was kept, up to 0.105 nat for each token at `top_p: 0.9`, besides what differs between the programs.
With penalties or `structured_outputs_regex` vLLM's are of the distribution that these make, too.

This page is generated: `python -m grpo_hpc.observe.metrics > docs/metrics.md`.

| name | unit | meaning |
|---|---|---|"""

_PHASES_HEAD = """
## Phases

What the live view calls what the run is doing now.

| phase | meaning |
|---|---|"""


if __name__ == "__main__":
    print(markdown(), end="")
