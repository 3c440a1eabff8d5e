"""The mathematics of GRPO: pure torch on plain tensors, no distributed state, no configuration object."""
