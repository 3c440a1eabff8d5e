"""Every metric of a run in one table: what it is called, its unit and its meaning.

The live view takes its labels from here, and docs/metrics.md is this table:

    python -m grpo_hpc.observe.metrics > docs/metrics.md
"""

from __future__ import annotations

import re
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
    "eval/<name>/mean": Metric(
        "",
        "The same for one greedy completion of each held-out prompt, with the weights of this step.",
        "<name>",
    ),
    "eval/mean_length": Metric("tok", "Mean length of those greedy completions.", "held-out length", ".1f"),
    "loss": Metric("", "GRPO loss of the optimizer step, KL term included.", "loss", ".4f"),
    "kl": Metric("", "Estimated KL divergence from the reference policy, per token; 0 when beta is 0.", "KL", ".4f"),
    "entropy": Metric("nat", "Mean entropy of the policy's next-token distribution.", "entropy"),
    "clip_ratio/region_mean": Metric(
        "", "Fraction of tokens whose probability ratio was clipped: the update wanted to go further.", "clip fraction"
    ),
    "ratio/mean_abs_error": Metric(
        "",
        "Mean distance of the probability ratio from 1; 0 in an on-policy step.",
        "ratio - 1",
        ".1e",
    ),
    "mismatch/logprob_abs_diff": Metric(
        "nat",
        "Mean distance of the engine's log-probabilities from the trainer's.",
        "mismatch",
        ".4f",
    ),
    "grad_norm": Metric("", "Global gradient norm before clipping.", "gradient norm"),
    "learning_rate": Metric("", "Learning rate of the optimizer step.", "learning rate", ".1e"),
    "completions/mean_length": Metric("tok", "Mean length of the rollout's completions.", "length", ".1f"),
    "completions/max_length": Metric("tok", "Length of the longest completion.", "longest", ".0f"),
    "completions/clipped_ratio": Metric(
        "", "Fraction of completions that were cut off at max_completion_length.", "cut off", ".2f"
    ),
    "completions/tokens": Metric("tok", "Tokens sampled in the rollout.", "sampled", ".0f"),
    "tokens/scored": Metric("tok", "Completion tokens in the loss of the optimizer step.", "trained on", ".0f"),
    "packing/micro_batches": Metric("", "Forward passes of the optimizer step on each rank.", "micro-batches", ".0f"),
    "packing/tokens_per_micro_batch": Metric("tok", "Mean tokens of a micro-batch, without padding.", "packed", ".0f"),
    "packing/padding_fraction": Metric(
        "", "Fraction of the micro-batches' tokens that is padding; 0 unless cp or sequence parallel.", "padding"
    ),
    "packing/imbalance": Metric(
        "", "Tokens of the data-parallel rank with the most, beyond the mean of all ranks.", "imbalance"
    ),
    "throughput/rollout_tokens_per_s": Metric(_SPEED, "Tokens sampled per second of rollout.", "rollout", ".0f"),
    "throughput/train_tokens_per_s": Metric(
        _SPEED, "Prompt and completion tokens trained on per second of the train phase.", "training", ".0f"
    ),
    "memory/peak_gib": Metric("GiB", "Most memory that the first rank has used so far.", "peak memory", ".1f"),
    "time/step": Metric(_SECONDS, "The whole step, without evaluation and saving.", "step", ".1f"),
    "time/sync": Metric(_SECONDS, "Handing the new weights to the engine.", "sync", ".1f"),
    "time/rollout": Metric(_SECONDS, "Sampling completions.", "rollout", ".1f"),
    "time/reward": Metric(_SECONDS, "Scoring them and gathering them from all ranks.", "reward", ".1f"),
    "time/logprob": Metric(_SECONDS, "Old and reference log-probabilities.", "logprob", ".1f"),
    "time/train": Metric(_SECONDS, "Forward, backward and optimizer step.", "train", ".1f"),
}

PHASES: dict[str, str] = {
    "start": "loading model and engine",
    "sync": "handing weights to the engine",
    "rollout": "sampling completions",
    "reward": "scoring completions",
    "logprob": "computing log-probabilities",
    "train": "training",
    "eval": "answering held-out prompts",
    "save": "saving a checkpoint",
    "export": "writing the Hugging Face folder",
}


def lookup(name: str) -> Metric | None:
    """The table's entry for the metric ``name``, or None; names of reward functions fill in ``<name>``."""
    pattern = re.sub(r"^(rewards|eval)/.+/mean$", r"\1/<name>/mean", name)
    return METRICS.get(pattern)


def reward_name(name: str) -> str:
    """``exact`` of ``rewards/exact/mean`` or ``eval/exact/mean``."""
    return name.partition("/")[2].removesuffix("/mean")


def markdown() -> str:
    """The table as a page of documentation."""
    rows = [f"| `{name}` | {metric.unit or '-'} | {metric.meaning} |" for name, metric in METRICS.items()]
    phases = [f"| `{name}` | {meaning} |" for name, meaning in PHASES.items()]
    return "\n".join([_HEAD, *rows, _PHASES_HEAD, *phases, ""])


_HEAD = """# Metrics

A run writes one row per optimizer step to `metrics.jsonl` in its run directory, and the same values to TensorBoard.
Each row has `step`, counted from 1, and `time`, in seconds since 1970. Evaluations are rows of their own, with the
number of steps made before them (0: the untrained model). A value that is not finite is written as `null`. Metrics of a
rollout appear with the first optimizer step made from it. Unless a meaning says otherwise, values are over all ranks.

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
