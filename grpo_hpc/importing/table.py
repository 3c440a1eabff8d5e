"""What becomes of every parameter of ``megatron rlhf --rlhf_type grpo``.

Names are those of ms-swift 4.x with the 3.11 names behind them. Where nothing else is said, a flag becomes the run
file's key of the same name, as soon as the run file has one; until then it is reported as not supported yet.
"""

from __future__ import annotations

from collections.abc import Callable

from grpo_hpc.importing import convert, multi_turn
from grpo_hpc.importing.convert import only, unless
from grpo_hpc.importing.fates import (
    Flag,
    Run,
    all_same,
    converted,
    ignored,
    missing,
    nothing,
    renamed,
    same,
    without_key,
)


def _served(run: Run) -> bool:
    return bool(run.value("vllm_mode") == "server")


def _gdpo(run: Run) -> bool:
    return bool(run.value("scale_rewards") == "gdpo")


def _adam(run: Run) -> bool:
    return bool(run.value("optimizer") == "adam")


def _constant_decay(run: Run) -> bool:
    return run.value("weight_decay_incr_style") in (None, "constant")


def _no_wsd(run: Run) -> bool:
    return str(run.value("lr_decay_style")).lower() != "wsd"


def _without(name: str) -> Callable[[Run], bool]:
    return lambda run: run.value(name) in (None, "0")


_no_fp8, _no_fp4 = _without("fp8_format"), _without("fp4_format")
_no_mtp, _no_capacity = _without("mtp_num_layers"), _without("moe_expert_capacity_factor")
_no_best = _without("metric_for_best_model")


_BATCH = (
    same("micro_batch_size", default=1),
    same("global_batch_size", default=16),
    *all_same("steps_per_generation", "generation_batch_size", "num_generations_eval", "num_iterations"),
    same("num_generations", default=8),
    same("max_completion_length", default=512),
    converted(
        "num_train_epochs", convert.epochs, "train_iters where the rows can be counted, else itself", "max_epochs"
    ),
    same("train_iters", convert=convert.steps),
    *nothing("an evaluation reads all of its rows", "eval_iters"),
)

_PARALLEL = (
    *all_same(
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "context_parallel_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        "pipeline_model_parallel_layout",
        "decoder_first_pipeline_num_layers",
        "decoder_last_pipeline_num_layers",
        "use_distributed_optimizer",
        "overlap_grad_reduce",
        "overlap_param_gather",
        "microbatch_group_size_per_vp_stage",
        "recompute_method",
        "recompute_num_layers",
        "recompute_modules",
    ),
    same(
        "virtual_pipeline_model_parallel_size", "num_virtual_stages_per_pipeline_rank", convert=convert.virtual_stages
    ),
    *missing(
        "write virtual_pipeline_model_parallel_size = layers / pipeline stages / this",
        "num_layers_per_virtual_pipeline_stage",
    ),
    *without_key(
        "false",
        "account_for_embedding_in_pipeline_split",
        "account_for_loss_in_pipeline_split",
        "tp_comm_overlap",
        "nccl_comm_warmup",
        "use_megatron_fsdp",
        "deterministic_mode",
        "moe_layer_recompute",
    ),
    *without_key("p2p", "cp_comm_type"),
    *without_key("no_shard", "data_parallel_sharding_strategy"),
    same("sequence_parallel", convert=convert.sequence_parallel),
    same("recompute_granularity", default="selective", convert=convert.recompute),
    converted(
        "ddp_timeout",
        convert.timeout,
        "distributed_timeout_minutes, from seconds since 4.0; ms-swift's default is 208 days",
        "distributed_timeout_minutes",
    ),
    converted(
        "cp_partition_mode",
        only("zigzag", "sequences are cut zigzag", "sequences are cut zigzag"),
        "only zigzag, as here",
    ),
    *nothing("the device decides: NCCL on GPUs, Gloo on a CPU", "ddp_backend=distributed_backend"),
    *nothing("one weight map serves loading, weight sync and export", "bridge_backend"),
    *nothing("attention kernels follow from the device and the installed packages", "attention_backend=use_flash_attn"),
    *nothing("sequences of a micro-batch always lie in one row without padding", "padding_free", "mlp_padding_free"),
    *nothing("TransformerEngine where it is installed", "transformer_impl"),
    *nothing(
        "fused kernels are used where the device has them; results do not depend on it",
        "masked_softmax_fusion=no_masked_softmax_fusion",
        "bias_dropout_fusion=no_bias_dropout_fusion",
        "apply_rope_fusion=no_rope_fusion",
        "gradient_accumulation_fusion=no_gradient_accumulation_fusion",
        "bias_activation_fusion=no_bias_swiglu_fusion",
        "moe_grouped_gemm",
        "moe_permute_fusion",
        "attention_softmax_in_fp32",
        "apply_query_key_layer_scaling",
    ),
    *nothing(
        "log-probabilities come from chunks of the LM head; full logits never exist",
        "cross_entropy_loss_fusion",
        "cross_entropy_fusion_impl",
    ),
    *nothing("every token's weight is fixed before the batch is split; Megatron only sums", "calculate_per_token_loss"),
    *nothing(
        "left to Megatron-Core",
        "batch_p2p_comm",
        "overlap_p2p_comm",
        "align_grad_reduce",
        "align_param_gather",
        "overlap_param_gather_with_optimizer_step",
        "microbatch_group_size_per_virtual_pipeline_stage",
        "manual_gc",
        "manual_gc_eval",
        "manual_gc_steps=manual_gc_interval",
        "te_rng_tracker",
        "data_parallel_random_init",
        "accumulate_allreduce_grads_in_fp32",
        "optimizer_cuda_graph",
        "local_rank",
        "skip_megatron_init",
    ),
)

_OPTIMIZER = (
    same("lr", default=convert.learning_rate),
    *all_same(
        "min_lr",
        "lr_warmup_iters",
        "lr_decay_iters",
        "optimizer_cpu_offload",
        "optimizer_offload_fraction",
        "use_precision_aware_optimizer",
        "vit_lr",
        "aligner_lr",
    ),
    *without_key("0", "lr_warmup_init"),
    *without_key("constant", "weight_decay_incr_style"),
    *without_key("false", "apply_wd_to_qk_layernorm"),
    *without_key("fp32", "main_grads_dtype", "main_params_dtype"),
    *(
        same(name, convert=unless(_constant_decay, "nothing reads it while weight_decay_incr_style is constant"))
        for name in ("start_weight_decay", "end_weight_decay")
    ),
    *(
        same(name, convert=unless(_no_wsd, "only lr_decay_style WSD reads it"))
        for name in ("lr_wsd_decay_iters", "lr_wsd_decay_style")
    ),
    same("exp_avg_dtype", convert=convert.state_precision),
    same("exp_avg_sq_dtype", convert=convert.state_precision),
    converted("lr_warmup_fraction", convert.warmup_fraction, "a share of all steps becomes lr_warmup_iters"),
    same("lr_decay_style", default="cosine"),
    same("weight_decay", default=0.1),
    same("clip_grad", default=1.0),
    same("adam_beta1", default=0.9),
    same("adam_beta2", default=0.95),
    same("adam_eps", default=1e-8),
    same("optimizer", default="adam"),
    *(
        same(name, convert=unless(_adam, "optimizer adam does not read it"))
        for name in (
            "sgd_momentum",
            "muon_coefficient_type",
            "muon_extra_scale_factor",
            "muon_fp32_matmul_prec",
            "muon_momentum",
            "muon_num_ns_steps",
            "muon_scalar_optimizer",
            "muon_scale_mode",
            "muon_split_qkv",
            "muon_tp_mode",
            "muon_use_nesterov",
        )
    ),
    *(converted(name, convert.precision, "becomes model.dtype") for name in ("bf16", "fp16", "torch_dtype")),
    *all_same("fp8_format", "fp4_format"),
    *(
        same(name, convert=unless(_no_fp8, "nothing reads it without fp8_format"))
        for name in ("fp8_recipe", "fp8_param_gather", "fp8_amax_history_len", "fp8_amax_compute_algo")
    ),
    *(
        same(name, convert=unless(_no_fp4, "nothing reads it without fp4_format"))
        for name in ("fp4_recipe", "fp4_param_gather")
    ),
)

_MOE = (
    *all_same(
        "moe_router_dtype",
        "moe_aux_loss_coeff",
        "moe_z_loss_coeff",
        "moe_expert_capacity_factor",
        "moe_router_bias_update_rate",
        "router_replay_mode",
    ),
    *without_key("alltoall", "moe_token_dispatcher_type"),
    *without_key("seq_aux_loss", "moe_router_load_balancing_type"),
    *without_key("false", "moe_shared_expert_overlap", "moe_pad_expert_input_to_capacity", "moe_enable_deepep"),
    same("moe_token_drop_policy", convert=unless(_no_capacity, "nothing reads it without moe_expert_capacity_factor")),
    *without_key("0", "mtp_num_layers"),
    *(
        same(name, convert=unless(_no_mtp, "nothing reads it without mtp_num_layers"))
        for name in ("mtp_loss_scaling_factor", "mtp_shared_weights", "mtp_decoder_input_detach")
    ),
)

_ROLLOUT = (
    converted("use_vllm", only(True, "rollouts always come from vLLM", "rollouts come from vLLM only"), "always vLLM"),
    same("vllm_mode", default="colocate"),
    same("vllm_gpu_memory_utilization", default=0.9, convert=unless(_served, "the servers' own command sets it")),
    *(
        same(name, convert=unless(_served, "the servers' own command sets it"))
        for name in (
            "vllm_tensor_parallel_size",
            "vllm_max_model_len",
            "vllm_enforce_eager",
            "vllm_limit_mm_per_prompt",
            "vllm_max_num_seqs",
            "vllm_mm_processor_cache_gb",
            "vllm_engine_kwargs",
        )
    ),
    *all_same(
        "sleep_level",
        "offload_model",
        "offload_optimizer",
        "vllm_server_timeout",
        "structured_outputs_regex",
    ),
    *without_key("true", "vllm_enable_prefix_caching", "vllm_disable_cascade_attn"),
    *without_key("false", "vllm_enable_lora", "offload_teacher_model", "vllm_server_pass_dataset", "async_generate"),
    renamed("stop_words", "stop"),
    same("min_p", default=0.0),
    same("repetition_penalty", default=1.0),
    converted("vllm_server_host", convert.server_nodes, "the number of hosts becomes vllm_server_nodes"),
    converted("vllm_server_base_url", convert.server_nodes, "the number of hosts becomes vllm_server_nodes"),
    same("vllm_server_port", convert=convert.server_port),
    *nothing("a free port is chosen", "vllm_server_group_port"),
    *nothing("weights are streamed to vLLM one tensor at a time", "offload_bridge"),
    same("temperature", default=0.9),
    same("top_k", default=-1, old_default=50, convert=convert.top_k),
    same("top_p", default=1.0, old_default=0.9),
    *nothing("log-probabilities of sampled tokens are always kept", "logprobs", "top_logprobs"),
    *nothing("rollouts are not streamed", "stream"),
    *nothing("GRPO samples; max_completion_length is the limit", "max_new_tokens", "num_beams", "max_model_len"),
)

_ALGORITHM = (
    same("loss_type", default="grpo"),
    same("beta", default=0.04, old_default=0.1),
    same("epsilon", default=0.2, convert=convert.only_with_losses("grpo", "bnpo", "dr_grpo", "dapo", "fipo")),
    same("epsilon_high", default=convert.ratio_cap),
    same("kl_in_reward", convert=unless(_gdpo, "scale_rewards gdpo switches it off")),
    same("delta", convert=convert.only_with_losses("grpo", "bnpo", "dr_grpo", "dapo", "fipo")),
    same("scale_rewards", default="group", convert=convert.scale_rewards),
    *all_same(
        "importance_sampling_level",
        "advantage_estimator",
        "tau_pos",
        "tau_neg",
        "real_tau",
        "fipo_decay_rate",
        "fipo_clip_range",
        "fipo_clip_high_only",
        "fipo_safety_threshold",
        "dynamic_sample",
        "max_resample_times",
        "overlong_filter",
        "rollout_importance_sampling_mode",
        "rollout_importance_sampling_threshold",
        "off_policy_sequence_mask_delta",
        "top_entropy_quantile",
        "sync_ref_model",
        "teacher_model",
        "teacher_model_type",
        "teacher_model_revision",
        "teacher_model_server",
        "teacher_adapters",
        "teacher_tag_key",
        "teacher_kl_coef",
        "ref_model",
        "ref_adapters",
    ),
    *ignored("Megatron GRPO refuses sync_ref_model and reads none of this", "ref_model_sync_steps"),
    *ignored("Megatron GRPO refuses sync_ref_model and reads none of this", "ref_model_mixup_alpha"),
    *nothing("recorded in every step: docs/metrics.md", "log_entropy", "log_rollout_offpolicy_metrics"),
    same("mcore_ref_model", "ref_load"),
    same("mcore_ref_adapter", "ref_adapter_load"),
)

_REWARDS = (
    converted(
        "reward_funcs",
        multi_turn.and_environment(convert.reward_functions),
        "plugins are named path/to/file.py:function; with an environment that gives rewards it is the last",
    ),
    same("reward_weights"),
    converted("multi_turn_scheduler", multi_turn.scheduler, "gym_scheduler; any other is a class of your own"),
    converted("gym_env", multi_turn.environment, "the class of the plugin becomes rollout.environment"),
    converted("use_gym_env", multi_turn.environment_reward, "reward_funcs: [environment]"),
    *(
        converted(name, convert.reward_parameter, f"`rewards.reward_params`, {parameter} of {function}")
        for name, (function, parameter) in convert.REWARD_PARAMETERS.items()
    ),
    *(
        same(name, convert=unless(multi_turn.one_turn, "nothing happens without multi_turn_scheduler"))
        for name in ("max_turns", "completion_length_limit_scope")
    ),
    *ignored(
        "Megatron GRPO reads neither; to have it: reward_funcs: [helpful=reward_model], docs/rewards.md", "reward_model"
    ),
    *ignored(
        "Megatron GRPO reads neither; to have it: name a class of your own in reward_funcs", "reward_model_plugin"
    ),
    *nothing("reward functions are named together with their file", "external_plugins=custom_register_path"),
    *ignored("no part of Megatron GRPO reads it", "move_model_batches"),
)

_TUNING = (
    same("tuner_type", "train_type", default="full"),
    same("lora_rank", default=8),
    same("lora_alpha", default=32),
    same("lora_dropout", default=0.05),
    Flag("freeze_vit", (), "freeze_parameters_regex", convert.freeze_vision, default=convert.frozen_tower),
    *nothing("frozen and trained with the vision tower", "freeze_aligner"),
    *all_same(
        "target_modules",
        "target_regex",
        "modules_to_save",
        "lora_dtype",
        "use_rslora",
        "adapters",
        "freeze_parameters",
        "freeze_parameters_regex",
        "freeze_parameters_ratio",
        "trainable_parameters",
        "trainable_parameters_regex",
    ),
    *without_key("none", "lora_bias"),
    *without_key("false", "freeze_llm", "merge_lora"),
    *nothing("there is one implementation of LoRA", "tuner_backend", "use_swift_lora"),
    *missing("quantised training", "quant_method", "quant_bits", "hqq_axis", "bnb_4bit_compute_dtype"),
    *missing("quantised training", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_quant_storage"),
)

_SERVICES = ("wandb", "swanlab")

_LOGGING = (
    *nothing("every optimizer step is recorded", "logging_steps=log_interval", "tensorboard_log_interval"),
    converted("report_to", convert.reporters, "the same list; none is []"),
    *all_same("log_completions"),
    *(
        same(f"{name}_{what}", convert=convert.of_reporter(name))
        for name in _SERVICES
        for what in ("project", "exp_name")
    ),
    *nothing("TensorBoard files lie in the run directory", "tensorboard_dir", "tensorboard_queue_size"),
    *nothing("wandb's files lie in the run directory", "wandb_save_dir"),
    *nothing("completions/ has one row per completion, with its prompt's id", "wandb_log_unique_prompts"),
    *missing("trainer call-backs", "callbacks"),
    *nothing(
        "docs/metrics.md lists what is recorded",
        "log_params_norm",
        "log_throughput",
        "log_memory_to_tensorboard",
        "log_timers_to_tensorboard",
        "log_validation_ppl_to_tensorboard",
        "no_log_learning_rate_to_tensorboard",
        "logging_level",
    ),
)

_CHECKPOINT = (
    converted("output_dir", convert.output_dir, "its last part becomes the run's name", "save"),
    same("save_steps", "save_interval", default=500),
    same("save_total_limit", "save_retain_interval"),
    *nothing(
        "checkpoints are Megatron's; export writes a Hugging Face folder at the end, checkpoint convert any other",
        "save_safetensors",
    ),
    converted("eval_steps", convert.evaluation_steps, "needs val_dataset", "eval_interval"),
    converted("save_strategy", only("steps", "checkpoints go by steps", "write save_steps"), "only by steps"),
    *all_same("metric_for_best_model", "max_shard_size"),
    same("greater_is_better", convert=unless(_no_best, "nothing reads it without metric_for_best_model")),
    *without_key("false", "async_save"),
    renamed("dist_ckpt_optim_fully_reshardable", "reshardable"),
    *nothing("a run directory is named after its run and never written over", "add_version"),
    *nothing("checkpoints always hold optimizer and random state, so that resume is exact", "no_save_optim"),
    *nothing("checkpoints always hold optimizer and random state, so that resume is exact", "no_save_rng"),
    *nothing("resume restores all of it", "no_load_optim", "no_load_rng"),
    *nothing("every exported weight is checked against the model", "save_missing_weights"),
    *nothing("the newest complete checkpoint is found by its manifest", "create_checkpoint_symlink"),
    *nothing(
        "checkpoints are Megatron's torch_dist format, loaded at any layout",
        "ckpt_format",
        "auto_detect_ckpt_format",
        "ckpt_assume_constant_structure",
        "ckpt_fully_parallel_load",
        "dist_ckpt_save_pre_mcore_014",
        "distrib_optim_fully_reshardable_mem_efficient",
        "use_persistent_ckpt_worker",
        "exit_on_missing_checkpoint",
        "ckpt_dir",
    ),
    converted(
        "finetune",
        only(True, "a new run starts at step 0", "to go on, use grpo-hpc resume; a run file always starts a new run"),
        "a new run starts at step 0",
    ),
    *nothing("models are read from Hugging Face folders", "load_safetensors"),
    *missing("convert it: grpo-hpc checkpoint convert, then name the folder as model.path", "mcore_model=load"),
    *missing("convert it to a Hugging Face adapter", "mcore_adapter=adapter_load"),
    *nothing("the run file is the only place arguments come from", "load_args", "load_data_args", "ignore_args_error"),
)

_MODEL = (
    converted("model", convert.model, "becomes model.path, a local folder"),
    *all_same("num_labels", "add_non_thinking_prefix"),
    *without_key("false", "language_model_only", "use_cpu_initialization"),
    *without_key("causal_lm", "task_type"),
    *without_key("0", "hidden_dropout", "attention_dropout"),
    *all_same("megatron_extra_kwargs", "rope_scaling", "new_special_tokens"),
    *missing("every layer has full attention", "window_size", "window_attn_skip_freq", "layer_types"),
    *without_key("vanilla", "softmax_type"),
    *missing("rotary positions follow from the model's family", "mrope_section", "mrope_interleaved"),
    converted("enable_thinking", convert.thinking, "an argument of the chat template: chat_template_kwargs"),
    *nothing("config.json of the model says it", "model_type", "architectures", "llm_architectures", "problem_type"),
    *nothing("weights are local files", "model_revision", "use_hf", "hub_token", "local_repo_path", "check_model"),
    *nothing("Megatron places the model", "device_map", "max_memory", "init_strategy", "perform_initialization"),
    *nothing("Megatron places the model", "no_initialization", "initialize_embedding"),
    *nothing("there is one attention for the whole model", "attn_impl", "experts_impl"),
    *nothing("only for a model's own conversation about itself", "model_name", "model_author"),
    *missing("options of a model's own loader", "model_kwargs"),
    *all_same("vit_attn_impl", "vit_gradient_checkpointing", "vit_gradient_checkpointing_kwargs"),
    *nothing("recompute is set by recompute_granularity", "gradient_checkpointing_kwargs"),
    *nothing(
        "read from the model's config.json, whatever is given here",
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "group_query_attention",
        "num_experts",
        "moe_ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
        "moe_router_topk",
        "moe_router_num_groups",
        "moe_router_group_topk",
        "moe_router_pre_softmax",
        "moe_router_score_function",
        "moe_router_topk_scaling_factor",
        "moe_router_enable_expert_bias",
        "moe_layer_freq",
        "moe_apply_probs_on_input",
        "use_shared_expert_gate",
        "multi_latent_attention",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_head_dim",
        "qk_pos_emb_head_dim",
        "kv_channels",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "position_embedding_type",
        "rotary_base",
        "rotary_percent",
        "rotary_interleaved",
        "partial_rotary_factor",
        "no_rope_freq",
        "normalization",
        "norm_epsilon",
        "swiglu",
        "quick_geglu",
        "activation_func_clamp_value",
        "glu_linear_offset",
        "untie_embeddings_and_output_weights",
        "disable_bias_linear",
        "add_qkv_bias",
        "qk_layernorm",
        "qk_l2_norm",
        "padded_vocab_size",
        "seq_length",
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_value_head_dim",
        "linear_decoupled_in_proj",
        "apply_dsa_kernel_fusion",
        "dsa_indexer_loss_coeff",
        "dsa_indexer_use_sparse_loss",
        "csa_dense_mode",
        "use_fused_mhc",
        "mhc_recompute_layer_num",
    ),
)

_DATA = (
    converted("dataset", convert.dataset("train"), "becomes data.train, a local file"),
    converted("val_dataset", convert.dataset("eval"), "becomes data.eval, a local file"),
    converted(
        "split_dataset_ratio",
        only("0", "no rows are split off", "put the rows to evaluate on into a file: data.eval"),
        "only 0; rows to evaluate on are a file of their own",
    ),
    same("max_length"),
    converted(
        "truncation_strategy",
        only("delete", "longer prompts are dropped", "longer prompts are dropped here, not cut"),
        "prompts longer than max_length are always dropped",
    ),
    converted("dataset_shuffle", convert.shuffle, "becomes data.shuffle"),
    converted("train_dataloader_shuffle", convert.shuffle, "becomes data.shuffle"),
    same("system", convert=convert.system_message),
    *nothing(
        "prompts are read once and encoded in the rollout",
        "dataset_num_proc",
        "dataloader_num_workers=num_workers",
        "dataloader_prefetch_factor",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_type",
        "data_sharding",
        "lazy_tokenize",
        "load_from_cache_file",
        "download_mode",
        "strict",
        "cached_dataset",
        "cached_val_dataset",
        "custom_dataset_info",
        "disable_auto_column_mapping",
        "val_dataset_shuffle",
        "shuffle_buffer_size",
    ),
    *nothing("one seed serves data, sampling and initialisation: seed", "data_seed"),
    *nothing("every column reaches the reward functions", "remove_unused_columns"),
    *missing("rename the columns in the file", "columns"),
    *missing("rows are files", "streaming"),
    *missing("one file is read", "interleave_prob", "stopping_strategy"),
    converted("loss_scale", multi_turn.loss_scale, "what the policy sampled is trained, in every turn"),
    *nothing("GRPO trains on completions only", "is_binary_loss_scale", "enable_channel_loss"),
    *nothing("completions are dealt over ranks by length", "group_by_length", "sequence_packing_scheduler"),
    *nothing("a micro-batch is always packed", "packing", "packing_length", "packing_num_proc", "packing_strategy"),
    *nothing("the tokenizer's chat template is used", "template", "template_backend"),
    *without_key("true", "use_chat_template"),
    *nothing("the tokenizer's chat template is used", "agent_template", "disable_ignore_empty_think", "padding_side"),
    *nothing("sequences are cut by context_parallel_size", "sequence_parallel_size"),
    *missing("images are not resized", "max_pixels", "norm_bbox"),
    *missing("completions begin where the chat template ends", "response_prefix", "preserve_thinking"),
)

_OTHER_METHODS = (
    converted("rlhf_type", only("grpo", "GRPO is what is here", "only GRPO"), "only grpo"),
    *ignored(
        "belongs to another training method than GRPO",
        "rpo_alpha",
        "reference_free",
        "label_smoothing",
        "f_divergence_type",
        "desirable_weight",
        "undesirable_weight",
        "calculate_KL",
        "center_rewards_coefficient",
        "lmbda",
        "seq_kd",
        "sft_alpha",
        "gkd_logits_topk",
        "enable_dft_loss",
        "mrl_dims",
        "lora_modules",
        "teacher_deepspeed",
        "enable_npu_model_patch",
    ),
    *nothing("there is no Ray here: Slurm or the local launcher places processes", "use_ray", "ray_exp_name"),
    *nothing("there is no Ray here: Slurm or the local launcher places processes", "device_groups", "colocate_groups"),
    renamed("train_gpus", "nproc_per_node"),
    *missing("GPUs of servers and teachers that Ray placed", "rollout_gpus", "teacher_gpus"),
    same("seed", default=42),
)

FLAGS: tuple[Flag, ...] = (
    *_BATCH,
    *_PARALLEL,
    *_OPTIMIZER,
    *_MOE,
    *_ROLLOUT,
    *_ALGORITHM,
    *_REWARDS,
    *_TUNING,
    *_LOGGING,
    *_CHECKPOINT,
    *_MODEL,
    *_DATA,
    *_OTHER_METHODS,
)
