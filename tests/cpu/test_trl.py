"""Losses and advantages beside TRL's own trainer, on the same tensors.

A real GRPOTrainer with a tiny model scores given completions and computes its loss from given log-probabilities: its
code, our numbers. Where we differ on purpose a test says so.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.losses import Options
from test_losses import make_step, our_step

from grpo_hpc.algo.advantages import advantages, gdpo_advantages
from grpo_hpc.algo.losses import LOSSES

GROUP, PROMPTS, LONGEST = 3, 2, 16


@pytest.fixture(scope="module")
def trainer(tiny, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL says which vLLM it knows
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        folder = tiny("llama")
        arguments = GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            per_device_train_batch_size=GROUP * PROMPTS,
            num_generations=GROUP,
            max_completion_length=LONGEST,
            use_cpu=True,
            bf16=False,
            report_to=[],
        )
        made = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            reward_funcs=[lambda completions, **columns: [0.0] * len(completions)] * 2,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}]),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def their_step(trainer, o, samples, xs):
    """Loss and gradients [completion][token] by TRL's ``_compute_loss``."""
    count, longest = len(xs), max(map(len, xs))

    def padded(rows):
        out = torch.zeros(count, longest, dtype=torch.float64)
        for row, values in enumerate(rows):
            out[row, : len(values)] = torch.tensor(values)
        return out

    mask = padded([np.ones(len(x)) for x in xs])
    mask[[o.overlong_filter and s.truncated for s in samples]] = 0.0
    x = padded(xs).requires_grad_()
    entropies = padded([s.entropy for s in samples])
    high = o.epsilon if o.epsilon_high is None else o.epsilon_high
    settings = {
        "loss_type": o.loss,
        "importance_sampling_level": o.level,
        "beta": o.beta,
        "epsilon_low": o.epsilon,
        "epsilon_high": 5.0 if o.loss == "cispo" and o.epsilon_high is None else high,
        "top_entropy_quantile": o.top_entropy,
        "off_policy_mask_threshold": o.stale_delta,
        "entropy_coef": o.entropy_coef,
        "_entropy_bonus_enabled": o.entropy_coef > 0,
        "use_vllm": o.correction is not None,
        "vllm_importance_sampling_correction": True,
        "max_completion_length": o.longest,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (x, entropies, None),
    }
    arguments = {
        "use_bias_correction_kl": False,  # DeepSeek-V3.2's weighting of the KL term, which we have not
        "delta": o.delta,
        "sapo_temperature_pos": o.tau_pos,
        "sapo_temperature_neg": o.tau_neg,
    }
    inputs = {
        "prompt_ids": torch.zeros(count, 1, dtype=torch.long),
        "prompt_mask": torch.ones(count, 1, dtype=torch.long),
        "completion_ids": torch.zeros(count, longest, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor([s.advantage for s in samples], dtype=torch.float64),
        "old_per_token_logps": padded([s.old for s in samples]),
        "ref_per_token_logps": padded([s.ref for s in samples]),
        "sampling_per_token_logps": padded([s.rollout for s in samples]),
        "num_items_in_batch": mask.sum(),
    }
    if o.correction is not None:  # as in the part of TRL's rollout that this stands in for
        ratio = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]).exp()
        bounds = {"min": o.lower, "max": o.upper}
        outside = (ratio < o.lower) | (ratio > o.upper)
        kept = ratio.clamp(**bounds) if o.correction == "token_truncate" else ratio.masked_fill(outside, 0.0)
        inputs["importance_sampling_ratio"] = kept
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setattr(trainer, name, value, raising=False)
        for name, value in arguments.items():
            patch.setattr(trainer.args, name, value)
        loss = trainer._compute_loss(trainer.model, inputs)
    (slope,) = torch.autograd.grad(loss, x)
    return loss.item(), torch.cat([row[: len(values)] for row, values in zip(slope, xs, strict=True)])


def both(trainer, o, seed):
    samples, xs = make_step(seed)
    ours, slopes = our_step(o, samples, xs, [[0, 3], [5, 1, 2], [4]])
    theirs, want = their_step(trainer, o, samples, xs)
    return ours, torch.cat(slopes), theirs, want


SHARED = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]
CHANGES = [
    {},
    {"level": "sequence"},
    {"epsilon": 0.1, "epsilon_high": 1.3, "delta": 2.4},
    {"beta": 0.2},
    {"overlong_filter": True, "beta": 0.1},
    {"top_entropy": 0.3},
    {"stale_delta": 0.05},
    {"correction": "token_truncate", "upper": 1.2, "beta": 0.1},
    {"correction": "token_mask", "upper": 1.2, "lower": 0.8},
]


@pytest.mark.parametrize("changed", CHANGES, ids=str)
@pytest.mark.parametrize("name", SHARED)
def test_loss_and_gradient_equal_trl(trainer, name, changed):
    """One micro-batch there, three here: bnpo, whose denominator there is the micro-batch's own, is equal then too."""
    ours, slopes, theirs, want = both(trainer, Options(name, longest=LONGEST, **changed), seed=21)
    tight = 1e-9 if name != "sapo" else 1e-6  # TRL holds sapo's temperatures in float32
    assert ours == pytest.approx(theirs, rel=tight, abs=1e-12)
    torch.testing.assert_close(slopes, want, rtol=tight * 10, atol=1e-12)


def test_entropy_bonus_equals_trl_where_both_take_the_token_mean(trainer):
    """Ours is summed with the weights of the loss, so that one coefficient is one trade-off; TRL's is a token mean."""
    ours, _, theirs, _ = both(trainer, Options("dapo", entropy_coef=0.1), seed=22)
    assert ours == pytest.approx(theirs, rel=1e-9)
    ours, _, theirs, _ = both(trainer, Options("grpo", entropy_coef=0.1), seed=22)
    assert ours != pytest.approx(theirs, rel=1e-3)


def test_filtered_rows_count_as_samples_and_not_as_tokens_as_in_trl(trainer):
    for name in ("grpo", "dapo", "dr_grpo"):
        o = Options(name, overlong_filter=True, longest=LONGEST)
        ours, _, theirs, _ = both(trainer, o, seed=23)
        unfiltered = both(trainer, replace(o, overlong_filter=False), seed=23)[0]
        assert ours == pytest.approx(theirs, rel=1e-9) and ours != pytest.approx(unfiltered, rel=1e-3)


def test_which_losses_trl_has():
    """What TRL has not is compared with the slow implementation alone."""
    assert set(LOSSES) - set(SHARED) == {"fipo", "real"}


def their_advantages(trainer, columns, weights, scale, aggregation):
    """By TRL's ``_generate_and_score_completions``, with completions and scores given."""
    rows = GROUP * PROMPTS
    scores = torch.tensor(columns, dtype=torch.float32).T
    generated = ([[1]] * rows, [[2, 257]] * rows, None, ["x"] * rows, None, {}, None, None)
    settings = {
        "_generate": lambda prompts: generated,
        "_calculate_rewards": lambda *_: scores.clone(),
        "scale_rewards": scale,
        "multi_objective_aggregation": aggregation,
        "reward_weights": torch.tensor(weights),
        "beta": 0.0,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setattr(trainer, name, value)
        return trainer._generate_and_score_completions([{"prompt": "a"}] * rows)["advantages"]


COLUMNS = [[0.0, 1.0, 0.5, 2.0, 2.0, 2.0], [1.0, math.nan, 0.0, 0.3, 0.1, math.nan]]
WEIGHTS = [1.0, 0.5]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_equal_trl(trainer, scale):
    rewards = (torch.tensor(COLUMNS).T * torch.tensor(WEIGHTS)).nansum(1)
    want = their_advantages(trainer, COLUMNS, WEIGHTS, scale, "sum_then_normalize")
    got = advantages(rewards, ["a"] * GROUP + ["b"] * GROUP, "grpo", scale)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_gdpo_equals_trl(trainer):
    want = their_advantages(trainer, COLUMNS, WEIGHTS, "group", "normalize_then_sum")
    got = gdpo_advantages(torch.tensor(COLUMNS).T, WEIGHTS, ["a"] * GROUP + ["b"] * GROUP)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_unscored_completions_have_no_advantage_as_in_trl(trainer):
    columns = [[0.0, math.nan, 0.5, 2.0, 1.0, 0.0]] * 2
    want = their_advantages(trainer, columns, [1.0, 0.0], "group", "sum_then_normalize")
    got = advantages(torch.tensor(columns[0]), ["a"] * GROUP + ["b"] * GROUP, "grpo", "group")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_sequence_corrections_differ_from_trl_on_purpose():
    """TRL bounds the product of a completion's ratios; we bound their geometric mean, as ms-swift does.

    The product grows with the length, so one bound cannot serve short and long completions. With one token both agree.
    """
    from grpo_hpc.algo.corrections import RolloutCorrection
    from grpo_hpc.algo.sequences import Sequences

    rollout, old = torch.full((21,), -1.0), torch.full((21,), -1.0 + math.log(1.1))
    weights, outside = RolloutCorrection("sequence_truncate", upper=2.0).weights(
        old, rollout, Sequences.of(torch.tensor([1, 20]))
    )
    assert weights.tolist() == pytest.approx([1.1] * 21) and not outside.any()
    assert 1.1**20 > 2.0, "the product of the longer one would be cut"
