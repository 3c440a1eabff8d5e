# Qwen3-30B-A3B with LoRA, GSPO.
CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 \
NPROC_PER_NODE=8 \
megatron rlhf \
    --rlhf_type grpo \
    --model Qwen/Qwen3-30B-A3B-Instruct-2507 \
    --merge_lora false \
    --context_parallel_size 2 \
    --tensor_model_parallel_size 2 \
    --expert_model_parallel_size 4 \
    --pipeline_model_parallel_size 2 \
    --sequence_parallel true \
    --dataset open-r1/DAPO-Math-17k-Processed#16000 \
    --num_train_epochs 1 \
    --global_batch_size $((8 * 8)) \
    --micro_batch_size 2 \
    --steps_per_generation 2 \
    --num_generations 8 \
    --reward_funcs accuracy format \
    --vllm_mode colocate \
    --vllm_gpu_memory_utilization 0.3 \
    --vllm_tensor_parallel_size 4 \
    --vllm_max_model_len 16384 \
    --max_length 8192 \
    --max_completion_length 8192 \
    --tuner_type lora --lora_rank 8 --lora_alpha 32 \
    --lr 5e-5 --bf16 true --beta 0.00 \
    --importance_sampling_level sequence --epsilon 3e-4 --epsilon_high 4e-4 \
    --overlong_filter true --sleep_level 2 --offload_model true --offload_optimizer true \
    --temperature 1.0 --log_completions true
