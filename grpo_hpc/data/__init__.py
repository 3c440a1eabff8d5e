"""Prompts: reading them from files, tokenising them once, and the order in which they are sampled."""
