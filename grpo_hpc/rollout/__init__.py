"""Sampling completions from the policy: trajectories, the engine, weight synchronisation."""
