"""Reward functions: the built-in ones, finding them by name, and scoring completions with them."""
