"""The Megatron GRPO trainer."""
