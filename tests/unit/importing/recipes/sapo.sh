GPUS=8
COMMON="--use_vllm true --vllm_mode colocate --vllm_gpu_memory_utilization 0.7 --vllm_max_model_len 8192"
NPROC_PER_NODE=$GPUS megatron rlhf --rlhf_type grpo --loss_type sapo --tau_pos 1 --tau_neg 1.05 \
  --model Qwen/Qwen2.5-VL-3B-Instruct --dataset AI-ModelScope/clevr_cogen_a_train#20000 --num_train_epochs 1 \
  --reward_funcs format --steps_per_generation 4 --micro_batch_size 2 --global_batch_size 128 --num_generations 8 \
  $COMMON --max_length 4096 --max_completion_length 4096 --tuner_type full --epsilon 0.2 --temperature 1.0 --lr 1e-6
