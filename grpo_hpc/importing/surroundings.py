"""What becomes of the parameters of ``swift rollout`` and of the environment that the commands run in."""

from __future__ import annotations

from grpo_hpc.importing import convert, multi_turn
from grpo_hpc.importing.fates import Flag, all_same, converted, ignored, missing, nothing, renamed, without_key

SERVER_FLAGS: tuple[Flag, ...] = (
    *all_same(
        "vllm_tensor_parallel_size",
        "vllm_gpu_memory_utilization",
        "vllm_max_model_len",
        "vllm_max_num_seqs",
        "vllm_max_lora_rank",
        "vllm_enforce_eager",
        "vllm_limit_mm_per_prompt",
        "vllm_mm_processor_cache_gb",
        "vllm_engine_kwargs",
        "vllm_quantization",
        "vllm_speculative_config",
        "max_turns",
    ),
    converted("multi_turn_scheduler", multi_turn.scheduler, "gym_scheduler; any other is a class of your own"),
    converted("gym_env", multi_turn.environment, "the class of the plugin becomes rollout.environment"),
    converted("use_gym_env", multi_turn.environment_reward, "reward_funcs: [environment]"),
    *without_key("1", "vllm_pipeline_parallel_size"),
    *without_key("true", "vllm_enable_prefix_caching", "vllm_disable_cascade_attn"),
    *without_key("false", "vllm_enable_lora", "vllm_enable_expert_parallel", "vllm_disable_custom_all_reduce"),
    converted("enable_thinking", convert.thinking, "an argument of the chat template: chat_template_kwargs"),
    renamed("port", "vllm_server_port"),
    *nothing("servers listen where the job runs", "host"),
    *nothing("every node of the servers gets as many engines as fit", "vllm_data_parallel_size"),
    *nothing("servers load the model of the run", "model", "max_length", "template", "system", "external_plugins"),
    *nothing("the engine is chosen by the run", "vllm_use_async_engine", "max_logprobs", "served_model_name"),
    *nothing("server logs lie in the run directory", "log_interval", "log_level", "verbose", "owned_by"),
    *missing("servers listen on the loop-back address or inside the cluster only", "api_key", "ssl_certfile"),
    *missing("servers listen on the loop-back address or inside the cluster only", "ssl_keyfile"),
    *ignored("ms-swift refuses it", "vllm_reasoning_parser", "context_manager"),
)

ENVIRONMENT: tuple[Flag, ...] = (
    renamed("NPROC_PER_NODE", "nproc_per_node", default=1),
    renamed("NNODES", "nodes", default=1),
    converted("CUDA_VISIBLE_DEVICES", convert.visible_devices, "NPROC_PER_NODE says how many"),
    converted("ASCEND_RT_VISIBLE_DEVICES", convert.visible_devices, "NPROC_PER_NODE says how many"),
    *(converted(name, convert.offline, "offline becomes report_offline") for name in ("WANDB_MODE", "SWANLAB_MODE")),
    *nothing(
        "no key lies in a run file: export it where you submit, and see `secrets` and `inherit` of the cluster profile",
        "WANDB_API_KEY",
        "SWANLAB_API_KEY",
    ),
    *nothing("every process is told by the launcher", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *nothing("set by the program", "CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS"),
    *nothing("weights are streamed in buckets of fixed size", "SWIFT_UPDATE_WEIGHTS_BUCKET_SIZE"),
    *nothing("Megatron-Core is an installed package", "MEGATRON_LM_PATH"),
    *nothing("files are local", "USE_HF", "MODELSCOPE_CACHE", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *missing("images are not resized", "MAX_PIXELS", "MIN_PIXELS", "IMAGE_MAX_TOKEN_NUM", "VIDEO_MAX_TOKEN_NUM"),
    *missing("videos are not sampled", "VIDEO_MAX_PIXELS", "FPS", "FPS_MAX_FRAMES", "SWIFT_AUDIO_LOAD_BACKEND"),
)
