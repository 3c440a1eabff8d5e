# Six GPUs train, two serve rollouts.
MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}
CUDA_VISIBLE_DEVICES=6,7 swift rollout --model "$MODEL" --vllm_data_parallel_size 2 --vllm_max_model_len 10240 > rollout.log 2>&1 &
until curl -s http://127.0.0.1:8000/health/ > /dev/null; do sleep 5; done

CUDA_VISIBLE_DEVICES=0,1,2,3,4,5 NPROC_PER_NODE=6 megatron rlhf \
    --rlhf_type grpo --model "${MODEL}" --tuner_type full \
    --dataset AI-ModelScope/clevr_cogen_a_train#10000 --train_iters 100 \
    --global_batch_size 96 --micro_batch_size 4 --steps_per_generation 4 --num_generations 8 \
    --external_plugins plugins/vision_rewards.py --reward_funcs external_r1v_acc format \
    --vllm_mode server --vllm_server_host 127.0.0.1 --vllm_server_port 8000 \
    --max_length 8192 --max_completion_length 2048 --temperature 1.0 --lr 1e-6 --beta 0.001 \
    --bf16 true --finetune --save_steps 1000 --output_dir output/vlm-server
