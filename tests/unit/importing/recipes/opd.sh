# A student of 2B learns from a teacher of 9B; no rewards.
NPROC_PER_NODE=2 megatron rlhf --rlhf_type grpo --model Qwen/Qwen3.5-2B --teacher_model Qwen/Qwen3.5-9B \
  --tensor_model_parallel_size 2 --sequence_parallel true --dataset modelscope/gsm8k --train_iters 1000 \
  --global_batch_size 16 --micro_batch_size 2 --steps_per_generation 2 --num_generations 1 \
  --vllm_gpu_memory_utilization 0.6 --vllm_max_model_len 12288 --sleep_level 1 --max_length 4096 \
  --max_completion_length 2048 --tuner_type lora --lora_rank 8 --lora_alpha 32 --target_modules all-linear \
  --lr 3e-5 --beta 0 --temperature 1 --top_k 0 --top_p 1
