"""Prompts: reading them from files and the order in which they are sampled."""
