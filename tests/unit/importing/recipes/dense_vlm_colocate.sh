#!/usr/bin/env bash
# A 3B vision-language model, rollouts in the training processes, 3.11 names.
set -euo pipefail
export NPROC_PER_NODE=8
MAX_PIXELS=602112 CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 \
megatron rlhf --rlhf_type grpo \
  --model Qwen/Qwen2.5-VL-3B-Instruct --load_safetensors true --save_safetensors true \
  --train_type full --freeze_vit true \
  --dataset 'AI-ModelScope/clevr_cogen_a_train#10000' --max_epochs 1 \
  --global_batch_size 128 --micro_batch_size 4 --steps_per_generation 4 --num_generations 8 \
  --external_plugins plugins/vision_rewards.py --reward_funcs external_r1v_acc format \
  --use_vllm true --vllm_mode colocate --vllm_gpu_memory_utilization 0.7 --vllm_max_model_len 10240 \
  --max_length 8192 --max_completion_length 2048 --temperature 1.0 --top_p 1.0 --top_k 0 \
  --sleep_level 2 --offload_model true --offload_optimizer true --offload_bridge false \
  --lr 1e-6 --bf16 true --beta 0.001 --epsilon 0.2 --epsilon_high 0.2 --overlong_filter true \
  --no_save_optim --no_save_rng --log_interval 1 --save_interval 1000 --eval_interval 1000 \
  --attention_backend flash --padding_free true --save output/vlm-colocate
