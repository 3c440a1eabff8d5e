"""Which keys of a run file may change between two starts of a run, and what stands against the others.

Every key is in exactly one of the lists, by its own name, which no other section has.
"""

from __future__ import annotations

from typing import Any

from grpo_hpc.config.sections import SECTION_OF, RunConfig

OBEYED = frozenset(
    {
        # limits, and how much is done at a time: nothing that is learned depends on them but by rounding
        *("distributed_timeout_minutes", "rollout_timeout_minutes", "vllm_server_timeout", "canary_tolerance"),
        *("micro_batch_size", "max_tokens_per_micro_batch"),
        *("recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules"),
        *("sleep_level", "offload_model", "offload_optimizer", "sync_bucket_mib", "vllm_enforce_eager"),
        *("vllm_engine_kwargs", "vllm_gpu_memory_utilization", "vllm_kv_cache_gib", "vllm_max_num_seqs"),
        *("reward_workers", "reward_concurrency", "reward_timeout", "reward_retries", "max_failures"),
        *("environment_timeout", "environment_memory_gib"),
        # what the next step or rollout looks up
        *("train_iters", "lr", "min_lr", "lr_decay_style", "lr_warmup_iters", "weight_decay", "clip_grad"),
        *("max_skipped_updates", "reward_weights", "reward_params", "reward_failure", "environment_failure"),
        "max_resample_times",
        *("epsilon", "epsilon_high", "delta", "tau_pos", "tau_neg", "real_tau", "entropy_coef", "top_entropy_quantile"),
        *("fipo_decay_rate", "fipo_clip_range", "fipo_clip_high_only", "fipo_safety_threshold"),
        *("save_steps", "save_total_limit", "save_last", "export", "reshardable", "eval_steps"),
        # what is told to people
        *("report_to", "report_offline", "wandb_project", "wandb_exp_name", "swanlab_project", "swanlab_exp_name"),
        "log_completions",
    }
)
"""Keys that the next start obeys."""

LAYOUT = frozenset(
    {
        *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
        *("expert_model_parallel_size", "expert_tensor_parallel_size", "virtual_pipeline_model_parallel_size"),
        *("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers", "sequence_parallel"),
        *("overlap_grad_reduce", "overlap_param_gather", "ddp_bucket_size"),
    }
)
"""Keys that the next start obeys where ``checkpoint.reshardable`` was true when the checkpoint was saved."""

MACHINES = frozenset({"nodes", "nproc_per_node"})
"""Keys of which the same is true, for a run by itself; its script is written anew."""

BOUND: dict[str, tuple[str, ...]] = {
    "the run's folder and script were made with it": (
        *("name", "output_dir", "device", "gpu"),
        *("vllm_mode", "vllm_server_nodes", "vllm_server_port", "vllm_tensor_parallel_size"),
        *("profile", "executor", "runtime", "image", "time_limit"),
        *("path", "config", "train", "eval", "reward_funcs", "environment"),
    ),
    "its checkpoints hold what was made with it": (
        *("dtype", "use_distributed_optimizer", "adam_beta1", "adam_beta2", "adam_eps"),
        *("use_precision_aware_optimizer", "exp_avg_dtype", "exp_avg_sq_dtype"),
        *("optimizer_cpu_offload", "optimizer_offload_fraction"),
        *("tuner_type", "lora_rank", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"),
        *("freeze_parameters_regex", "moe_router_bias_update_rate", "sync_ref_model", "ref_model_sync_steps"),
        "ref_model_mixup_alpha",
    ),
    "the order of rows and what is sampled follow from it": (
        *("seed", "system", "chat_template_kwargs", "max_length", "shuffle"),
        *("num_generations", "global_batch_size", "generation_batch_size", "steps_per_generation", "num_iterations"),
        *("num_train_epochs", "max_completion_length", "vllm_max_model_len", "vllm_dtype"),
        *("temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "structured_outputs_regex"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "dynamic_sample"),
        *("environment_params", "max_turns", "max_observation_tokens", "completion_length_limit_scope"),
        *("thinking_history", "tool_parser", "reasoning_parser"),
    ),
    "a rollout that is half used was prepared with it": (
        *("loss_type", "importance_sampling_level", "loss_scaling", "beta", "kl_estimator", "kl_in_reward"),
        *(
            "advantage_estimator",
            "scale_rewards",
            "turn_advantage_coef",
            "overlong_filter",
            "off_policy_sequence_mask_delta",
        ),
        *("rollout_importance_sampling_mode", "rollout_importance_sampling_threshold"),
        "rollout_importance_sampling_min",
        *("moe_router_dtype", "moe_aux_loss_coeff", "moe_z_loss_coeff", "router_replay_mode"),
    ),
}
"""Keys that no later start can obey, by the reason."""


def changes(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Full names of the keys that differ, with both values."""
    old, new = _flat(before), _flat(after)
    return {key: (old[key], new[key]) for key in old if old[key] != new[key]}


def bound_by(key: str, before: RunConfig, alone: bool = True) -> str | None:
    """Why a run that was started as ``before`` cannot obey another value of ``key``; None when it can.

    Args:
        alone: it is started by itself, not as one of a sweep.
    """
    leaf = key.rpartition(".")[2]
    if leaf in MACHINES and not alone:
        return "the runs of a sweep share one array job: resume this one by itself"
    if leaf in LAYOUT | MACHINES and not before.checkpoint.reshardable:
        return "checkpoints are bound to their layout where checkpoint.reshardable is false"
    return next((reason for reason, keys in BOUND.items() if leaf in keys), None)


def _flat(cfg: RunConfig) -> dict[str, Any]:
    values = cfg.model_dump()
    sections = set(SECTION_OF.values())
    top = {key: value for key, value in values.items() if key not in sections}
    return top | {f"{section}.{leaf}": value for section in sections for leaf, value in values[section].items()}
