"""Which replica samples which completion of a rollout.

Lengths of one prompt's completions resemble each other, so they are dealt one by one: every prompt, be its answers long
or short, gives nearly as many to each replica. The price is that several engines read a prompt that one of them could
have read for all of its completions. It is paid unless prompts are so long that reading them takes longer than
sampling; then completions of a prompt stay together. What an engine can work on at once is dealt before anything is
sampled, the same in every run; what is left is a queue, and whoever has room takes the next of it. Who samples what
changes nothing about what is sampled, because a request's seed depends on its place alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from grpo_hpc.rollout.sample import Key

PREFILL_TOKENS = 8
"""Prompt tokens that an engine reads in the time of one sampled token. The plan's estimates for the shipped run files
lie between 3 (Qwen3-32B, 256 sequences at a time) and 200 (Qwen3-30B-A3B, 16 at a time)."""


@dataclass(frozen=True)
class Deal:
    """Who samples what.

    Attributes:
        shares: by replica, what it begins with.
        queue: what is left, in pieces that one replica samples.
    """

    shares: list[list[Key]]
    queue: list[list[Key]]

    def claimed(self, replica: int, claim: Callable[[], int]) -> Iterator[Key]:
        """What a replica samples, one key at a time; ask when there is room for it.

        Args:
            claim: the next number from 0 that no replica has got yet.
        """
        yield from self.shares[replica]
        while (number := claim()) < len(self.queue):
            yield from self.queue[number]


def deal(keys: Sequence[Key], prompt_tokens: Sequence[int], replicas: int, places: int, completion_tokens: int) -> Deal:
    """Who samples which of ``keys``, the same on every rank.

    Args:
        keys: those of a prompt adjacent.
        prompt_tokens: length of the prompt of each.
        places: completions that a replica works on at once.
        completion_tokens: longest completion that may be sampled.
    """
    at_once = min(len(keys), places * replicas)
    now, later = keys[:at_once], keys[at_once:]
    if sum(prompt_tokens) <= PREFILL_TOKENS * completion_tokens * len(keys):
        return Deal([list(now[replica::replicas]) for replica in range(replicas)], [[key] for key in later])
    ends = [at_once * number // replicas for number in range(replicas + 1)]
    groups: dict[int, list[Key]] = {}
    for key in later:
        groups.setdefault(key.position, []).append(key)
    return Deal([list(now[start:end]) for start, end in pairwise(ends)], list(groups.values()))
