"""Sampling completions from the policy: samples and their summaries, the engine, weight synchronisation."""
