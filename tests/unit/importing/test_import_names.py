"""The table knows every parameter, and the page made from it is current."""

from __future__ import annotations

from pathlib import Path

from grpo_hpc.importing.fates import Fate
from grpo_hpc.importing.show_import import markdown
from grpo_hpc.importing.surroundings import ENVIRONMENT, SERVER_FLAGS
from grpo_hpc.importing.table import FLAGS
from grpo_hpc.importing.translate import dotted

PAGE = Path(__file__).parents[3] / "docs" / "ms-swift-names.md"

# Names of the parameters of Megatron GRPO in ms-swift, 3.11 and 4.x, collected independently of the table.
PARAMETERS = """
CUDA_DEVICE_MAX_CONNECTIONS FPS_MAX_FRAMES MASTER_ADDR MASTER_PORT MAX_PIXELS NNODES NODE_RANK NPROC_PER_NODE
PYTORCH_CUDA_ALLOC_CONF SWIFT_AUDIO_LOAD_BACKEND SWIFT_UPDATE_WEIGHTS_BUCKET_SIZE VIDEO_MAX_PIXELS
account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split adam_beta1 adam_eps adapter_load
adapters add_version advantage_estimator aligner_lr apply_rope_fusion async_generate async_save attention_backend
attn_impl beta bf16 bias_dropout_fusion bridge_backend calculate_per_token_loss callbacks ckpt_format clip_grad
columns completion_length_limit_scope context_manager context_parallel_size cosine_max_len
cosine_max_len_value_correct cosine_max_len_value_wrong cosine_min_len_value_correct cosine_min_len_value_wrong
cp_comm_type cp_partition_mode create_checkpoint_symlink cross_entropy_fusion_impl cross_entropy_loss_fusion
dataloader_num_workers dataset dataset_num_proc dataset_shuffle ddp_backend ddp_timeout
decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers delta deterministic_mode
dist_ckpt_optim_fully_reshardable distributed_backend distributed_timeout_minutes dynamic_sample enable_thinking
epsilon epsilon_high eval_interval eval_iters eval_steps exp_avg_dtype exp_avg_sq_dtype expert_model_parallel_size
expert_tensor_parallel_size external_plugins finetune fipo_clip_high_only fipo_clip_range fipo_decay_rate
fipo_safety_threshold fp16 fp8_format fp8_param_gather fp8_recipe freeze_aligner freeze_llm freeze_parameters
freeze_parameters_ratio freeze_parameters_regex freeze_vit generation_batch_size global_batch_size
gradient_accumulation_fusion greater_is_better group_by_length gym_env host importance_sampling_level kl_in_reward
language_model_only lazy_tokenize load load_from_cache_file load_safetensors log_completions log_entropy
log_interval log_rollout_offpolicy_metrics logging_steps lora_alpha lora_bias lora_dropout lora_dtype lora_rank
loss_scale loss_type lr lr_decay_iters lr_decay_style lr_warmup_fraction lr_warmup_iters main_grads_dtype
main_params_dtype masked_softmax_fusion max_completion_length max_epochs max_length max_resample_times
max_shard_size max_turns mcore_adapter mcore_model mcore_ref_adapter mcore_ref_model merge_lora
metric_for_best_model micro_batch_size min_lr min_p model modules_to_save moe_aux_loss_coeff moe_enable_deepep
moe_expert_capacity_factor moe_grouped_gemm moe_layer_recompute moe_permute_fusion moe_router_dtype
moe_shared_expert_overlap moe_token_dispatcher_type moe_token_drop_policy moe_z_loss_coeff move_model_batches
mtp_num_layers multi_turn_scheduler nccl_comm_warmup no_bias_dropout_fusion no_gradient_accumulation_fusion
no_load_optim no_load_rng no_masked_softmax_fusion no_rope_fusion no_save_optim no_save_rng num_generations
num_generations_eval num_iterations num_layers num_layers_per_virtual_pipeline_stage num_train_epochs
num_virtual_stages_per_pipeline_rank num_workers off_policy_sequence_mask_delta offload_bridge offload_model
offload_optimizer offload_teacher_model optimizer optimizer_cpu_offload optimizer_offload_fraction output_dir
overlap_grad_reduce overlap_param_gather overlong_filter padding_free pipeline_model_parallel_layout
pipeline_model_parallel_size port real_tau recompute_granularity recompute_method recompute_modules
recompute_num_layers ref_adapter_load ref_adapters ref_load ref_model ref_model_mixup_alpha ref_model_sync_steps
remove_unused_columns repetition_max_penalty repetition_n_grams repetition_penalty report_to reward_funcs
reward_model reward_model_plugin reward_weights rollout_importance_sampling_mode
rollout_importance_sampling_threshold router_replay_mode save save_interval save_missing_weights
save_retain_interval save_safetensors save_steps save_strategy save_total_limit scale_rewards seed
sequence_parallel sleep_level soft_cache_length soft_max_length split_dataset_ratio steps_per_generation stop_words
streaming structured_outputs_regex swanlab_exp_name swanlab_project sync_ref_model system target_modules
target_regex tau_neg tau_pos teacher_kl_coef teacher_model teacher_model_revision teacher_model_server
teacher_model_type teacher_tag_key temperature tensor_model_parallel_size tensorboard_dir tensorboard_queue_size
top_entropy_quantile top_k top_p tp_comm_overlap train_dataloader_shuffle train_iters train_type
trainable_parameters trainable_parameters_regex truncation_strategy tuner_type use_cpu_initialization
use_distributed_optimizer use_gym_env use_megatron_fsdp use_persistent_ckpt_worker use_precision_aware_optimizer
use_rslora use_vllm val_dataset virtual_pipeline_model_parallel_size vit_attn_impl vit_gradient_checkpointing
vit_gradient_checkpointing_kwargs vit_lr vllm_data_parallel_size vllm_disable_cascade_attn vllm_enable_lora
vllm_enable_prefix_caching vllm_enforce_eager vllm_engine_kwargs vllm_gpu_memory_utilization
vllm_limit_mm_per_prompt vllm_max_lora_rank vllm_max_model_len vllm_max_num_seqs vllm_mm_processor_cache_gb
vllm_mode vllm_pipeline_parallel_size vllm_reasoning_parser vllm_server_base_url vllm_server_group_port
vllm_server_host vllm_server_pass_dataset vllm_server_port vllm_server_timeout vllm_tensor_parallel_size
vllm_use_async_engine wandb_exp_name wandb_log_unique_prompts wandb_project weight_decay
""".split()  # noqa: SIM905


def test_every_parameter_is_in_the_table() -> None:
    known = {name for flag in (*FLAGS, *SERVER_FLAGS, *ENVIRONMENT) for name in flag.names}
    assert len(PARAMETERS) > 280
    assert sorted(set(PARAMETERS) - known) == []


def test_no_name_is_there_twice() -> None:
    for table in (FLAGS, SERVER_FLAGS, ENVIRONMENT):
        names = [name for flag in table for name in flag.names]
        assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_flags_without_a_key_say_why() -> None:
    for flag in (*FLAGS, *SERVER_FLAGS, *ENVIRONMENT):
        assert flag.fate in (None, Fate.NO_EFFECT, Fate.IGNORED, Fate.UNSUPPORTED), flag
        assert flag.fate is None or flag.why, flag


def test_keys_of_the_run_file_are_taken() -> None:
    for flag in (*FLAGS, *ENVIRONMENT):
        taken = flag.fate in (None, Fate.IGNORED) or dotted(flag.name) is None
        assert taken, f"{flag.name} is a key of the run file now: let the table take it"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == markdown(), "run: python -m grpo_hpc.importing.show_import > docs/ms-swift-names.md"
