#!/bin/bash
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
# Qwen3-30B-A3B, all parameters, GSPO.
PARALLEL=(
  --tensor_model_parallel_size 4 --pipeline_model_parallel_size 2   # one replica
  --expert_model_parallel_size 4 --sequence_parallel true
)
PYTORCH_CUDA_ALLOC_CONF='expandable_segments:True' \
NNODES=$SLURM_NNODES NPROC_PER_NODE=$SLURM_GPUS_ON_NODE NODE_RANK=$SLURM_NODEID MASTER_ADDR=$(hostname) \
megatron rlhf --rlhf_type grpo --model=Qwen/Qwen3-30B-A3B-Instruct-2507 "${PARALLEL[@]}" \
  --dataset open-r1/DAPO-Math-17k-Processed#16000 --num_train_epochs=1 \
  --global_batch_size 8 --micro_batch_size 1 --steps_per_generation 1 --num_generations 8 \
  --reward_funcs accuracy format --vllm_mode colocate \
  --vllm_gpu_memory_utilization 0.4 --vllm_tensor_parallel_size 8 --vllm_max_model_len 16384 \
  --max_length 8192 --max_completion_length 8192 --tuner_type full --lr 1e-6 --bf16 true --beta 0.00 \
  --importance_sampling_level sequence --epsilon 3e-4 --epsilon_high 4e-4 --overlong_filter true \
  --sleep_level 2 --offload_model true --offload_optimizer true --optimizer_cpu_offload true \
  --use_precision_aware_optimizer --recompute_granularity selective --temperature 1.0 --report_to tensorboard
