"""What one model family is: its shape, its Megatron configuration and its weight map."""
