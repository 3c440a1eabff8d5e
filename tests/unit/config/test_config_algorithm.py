"""Rules of the section ``algorithm``: what has no meaning beside what, and bounds that tie keys together."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.algo.losses import LOSSES
from grpo_hpc.config import load_run
from grpo_hpc.config.load import dump_run
from grpo_hpc.config.sections import Algorithm
from grpo_hpc.errors import ConfigError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


def mistakes(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(QUICKSTART, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss_type=dappo"], ["there is no 'dappo'", "did you mean dapo?"]),
        (["advantage_estimator=gae2000"], ["there is no 'gae2000'", "rloo"]),
        (["loss_type=cispo", "delta=3.0"], ["algorithm.delta", "loss_type cispo", "grpo"]),
        (["loss_type=cispo", "epsilon=0.1"], ["algorithm.epsilon ", "loss_type cispo"]),
        (["loss_type=sapo", "epsilon_high=0.3"], ["algorithm.epsilon_high", "loss_type sapo", "cispo"]),
        (["tau_pos=2.0"], ["algorithm.tau_pos", "it belongs to sapo"]),
        (["loss_type=cispo", "epsilon_high=0.28"], ["at least 1, got 0.28", "5 is usual"]),
        (["epsilon_high=0.1"], ["at least algorithm.epsilon = 0.2, got 0.1"]),
        (["delta=1.1"], ["1 + epsilon_high = 1.2, got 1.1"]),
        (["kl_estimator=k2"], ["algorithm.kl_estimator", "while beta is 0"]),
        (["kl_in_reward=true"], ["algorithm.kl_in_reward", "while beta is 0"]),
        (["beta=0.1", "kl_in_reward=true", "kl_estimator=k2"], ["always takes k1"]),
        (["sync_ref_model=true"], ["algorithm.sync_ref_model", "while beta is 0"]),
        (["ref_model_sync_steps=3"], ["without sync_ref_model"]),
        (["max_resample_times=3"], ["without dynamic_sample"]),
        (["rollout_importance_sampling_min=0.5"], ["without rollout_importance_sampling_mode"]),
        (["scale_rewards=gdpo", "advantage_estimator=rloo"], ["algorithm.advantage_estimator", "gdpo"]),
        (["scale_rewards=gdpo", "beta=0.1", "kl_in_reward=true"], ["cannot be combined with scale_rewards gdpo"]),
        (["turn_advantage_coef=0.5"], ["algorithm.turn_advantage_coef", "needs rollout.environment"]),
        (["turn_advantage_coef=0.5", "scale_rewards=gdpo"], ["no one deviation that turns could be divided by"]),
        (["turn_advantage_coef=0.5", "loss_type=real"], ["algorithm.turn_advantage_coef", "loss_type real"]),
        (["loss_scaling=ms_swift"], ["loss_type grpo", "scales exactly too"]),
        (
            ["loss_type=bnpo", "loss_scaling=ms_swift", "max_tokens_per_micro_batch=512"],
            ["algorithm.loss_scaling", "batch.micro_batch_size"],
        ),
        *(
            (["loss_type=real", given], [given.partition("=")[0], "nothing but the signs"])
            for given in (
                "importance_sampling_level=sequence",
                "scale_rewards=none",
                "advantage_estimator=rloo",
                "rollout_importance_sampling_mode=token_mask",
                "off_policy_sequence_mask_delta=0.1",
                "top_entropy_quantile=0.2",
            )
        ),
        (
            ["top_p=0.9", "off_policy_sequence_mask_delta=0.1"],
            ["algorithm.off_policy_sequence_mask_delta", "under top_p 0.9 even for equal weights"],
        ),
        (
            ["top_p=0.9", "top_k=50", "rollout_importance_sampling_mode=token_mask"],
            ["algorithm.rollout_importance_sampling_mode", "under top_p 0.9 and top_k 50"],
        ),
        *(
            ([key, "rollout_importance_sampling_mode=token_mask"], [f"under {cut} even", f"rollout.{cut.split()[0]}"])
            for key, cut in (
                ("min_p=0.1", "min_p 0.1"),
                ("repetition_penalty=1.1", "repetition_penalty"),
                ("presence_penalty=-0.5", "presence_penalty"),
                ("frequency_penalty=0.5", "frequency_penalty"),
                ("structured_outputs_regex=a+", "structured_outputs_regex"),
            )
        ),
        (["log_entropy=false"], ["entropy is always logged"]),
        (["top_entropy_quantile=0"], ["greater than 0"]),
    ],
    ids=str,
)
def test_what_has_no_effect_or_no_meaning_is_an_error(overrides: list[str], said: list[str]) -> None:
    text = mistakes(*overrides)
    assert all(words in text for words in said), text


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_can_be_chosen_with_all_its_keys(name: str) -> None:
    """Each option of a loss is a key with a default, and the resolved file holds those of this loss and no other's."""
    cfg = load_run(QUICKSTART, [f"loss_type={name}"])
    dumped = dump_run(cfg)
    keys = {option for loss in LOSSES.values() for option in loss.options}
    assert keys <= Algorithm.model_fields.keys()
    for key in keys:
        assert (f"  {key}:" in dumped) == (key in LOSSES[name].options), key


def test_several_passes_over_a_rollout() -> None:
    from grpo_hpc.config.batch import schedule

    cfg = load_run(QUICKSTART, ["num_iterations=3", "steps_per_generation=2", "train_iters=20"])
    plan = schedule(cfg)
    assert (plan.steps_per_generation, plan.steps_per_rollout, plan.rollouts) == (2, 6, 4)
    assert plan.generation_batch_size == 2 * plan.global_batch_size
