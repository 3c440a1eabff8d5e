"""Which engine samples which completion of a rollout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PREFILL_TOKENS = 8
"""Prompt tokens that an engine reads in the time of one sampled token. The plan's estimates for the shipped run files
lie between 3 (Qwen3-32B, 256 sequences at a time) and 200 (Qwen3-30B-A3B, 16 at a time)."""


def spread(prompt_tokens: Sequence[int], samples: int, engines: int, completion_tokens: int) -> np.ndarray:
    """The engine of each completion: int32 [prompts * samples], those of a prompt adjacent.

    Lengths of one prompt's completions resemble each other, so they are dealt one by one: every prompt, be its answers
    long or short, gives nearly as many to each engine. The price is that several engines read a prompt that one of
    them could have read for all of its completions. It is paid unless prompts are so long that reading them takes
    longer than sampling; then completions of a prompt stay together. Which engine samples changes nothing about what
    is sampled, because a request's seed depends on its place alone.

    Args:
        prompt_tokens: length of each prompt.
        samples: completions of each prompt.
        completion_tokens: longest completion that may be sampled.
    """
    places = np.arange(len(prompt_tokens) * samples)
    if sum(prompt_tokens) > PREFILL_TOKENS * completion_tokens * len(prompt_tokens):
        return (places * engines // max(1, len(places))).astype(np.int32)
    return (places % engines).astype(np.int32)
