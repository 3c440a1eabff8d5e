CUDA_VISIBLE_DEVICES=2 swift rollout --model Qwen/Qwen2.5-0.5B-Instruct &
CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=2 megatron rlhf --rlhf_type grpo --model Qwen/Qwen2.5-0.5B-Instruct \
  --dataset 'AI-MO/NuminaMath-TIR#4000' --num_train_epochs 1 --micro_batch_size 8 --global_batch_size 128 \
  --num_generations 8 --reward_funcs accuracy --vllm_mode server --vllm_server_host 127.0.0.1 --vllm_server_port 8000 \
  --max_completion_length 2048 --tuner_type full --lr 2e-6 --beta 0.001 --loss_type real --temperature 0.6 \
  --system 'Put the answer into \boxed{}.'
