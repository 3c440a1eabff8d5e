"""GRPO on Megatron for HPC clusters: plan, submit, train, checkpoint."""

__version__ = "0.1.0"
