NPROC_PER_NODE=8 megatron rlhf --rlhf_type grpo --model Qwen/Qwen3.5-2B --dataset frozen_lake.jsonl#1024 \
  --train_iters 120 --global_batch_size 64 --micro_batch_size 1 --steps_per_generation 4 --num_generations 8 \
  --external_plugins frozen_lake_plugin.py --vllm_gpu_memory_utilization 0.5 --vllm_max_model_len 6632 \
  --max_length 6120 --max_completion_length 512 --multi_turn_scheduler gym_scheduler --gym_env frozen_lake \
  --use_gym_env true --max_turns 10 --tuner_type lora --lr 5e-5 --beta 0.001 --temperature 1.0 --top_k 80
