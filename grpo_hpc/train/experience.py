"""A rollout while optimizer steps are made from it: summaries on every rank, payloads where they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from grpo_hpc.rollout.sample import Key, Sample, keys_of
from grpo_hpc.train.micro_batches import PackedBatch, pack
from grpo_hpc.train.packing import RowLayout

Dealt = list[list[np.ndarray]]
"""Who trains what in one optimizer step: by data-parallel rank and micro-batch, rows of the table of summaries."""


@dataclass
class Experience:
    """What a rollout left to train on.

    Attributes:
        table: summaries of its completions in sampling order, the same on every rank.
        steps: of each optimizer step in a pass over the rollout.
        samples: what this rank's replica trains.
        used: optimizer steps made so far.
        old: log-probabilities of ``samples`` before the first of these steps, float32 [n]; None where none are needed,
            and where they are not known: but on the last pipeline stage.
        entropies: the same of the distributions that tokens come from; None on a resume, too.
        ref: the same of the reference policy.
        routing: experts that their tokens went to in the pass that computed ``old``; None where it was not recorded.
        turns: what each of their turns adds to the advantage of its tokens, float32 [turns], or [0] where an
            environment rewards no turns; None where none does.
    """

    table: np.ndarray
    steps: list[Dealt]
    samples: dict[Key, Sample]
    used: int = 0
    old: dict[Key, np.ndarray] | None = None
    entropies: dict[Key, np.ndarray] | None = None
    ref: dict[Key, np.ndarray] | None = None
    routing: dict[Key, np.ndarray] | None = None
    turns: dict[Key, np.ndarray] | None = None

    @property
    def number(self) -> int:
        """Which step of a pass comes next."""
        return self.used % len(self.steps)

    def pack(
        self, rows: np.ndarray, device: torch.device, layout: RowLayout, advantages: np.ndarray | None = None
    ) -> PackedBatch:
        """The micro-batch of ``rows`` of the table; ``advantages`` [B] stand in for those of its completions.

        Raises:
            ValueError: something is known of some completions of the rollout and not of one of these.
        """
        keys = keys_of(self.table[rows])
        samples = [self.samples[key] for key in keys]
        told = self.routing if not samples[0].routing.size else {key: self.samples[key].routing for key in keys}
        whole = (self.table["advantage"] if advantages is None else advantages)[rows].tolist()
        of_turns = _known(self.turns, keys, "advantages of turns")
        return pack(
            samples,
            whole if of_turns is None else [_of_tokens(*told) for told in zip(samples, whole, of_turns, strict=True)],
            self.table["token_weight"][rows].tolist(),
            device,
            layout,
            old=_known(self.old, keys, "old log-probabilities"),
            ref=_known(self.ref, keys, "reference log-probabilities"),
            routing=_known(told, keys, "recorded routing"),
        )


def _known(values: Mapping[Key, np.ndarray] | None, keys: Sequence[Key], what: str) -> list[np.ndarray] | None:
    if values is None:
        return None
    if missing := [key for key in keys if key not in values]:
        raise ValueError(f"completion {tuple(missing[0])} has no {what}, but others of its rollout have")
    return [values[key] for key in keys]


def _of_tokens(sample: Sample, advantage: float, of_turns: np.ndarray) -> float | np.ndarray:
    """The advantage of each sampled token, [n], or the one that all of them have."""
    return advantage + of_turns.repeat(sample.turn_lengths) if len(of_turns) else advantage


def by_key(table: np.ndarray, rows: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> dict[Key, np.ndarray]:
    """Values of sampled tokens, [N] for each micro-batch of ``rows``, cut into those of each completion."""
    found: dict[Key, np.ndarray] = {}
    for chosen, value in zip(rows, values, strict=True):
        bounds = np.concatenate([[0], table["sampled"][chosen].cumsum()]).tolist()
        found |= {key: value[a:b] for key, (a, b) in zip(keys_of(table[chosen]), pairwise(bounds), strict=True)}
    return found


def turns_by_key(table: np.ndarray, turns: np.ndarray) -> dict[Key, np.ndarray]:
    """``advantage`` of the turns of each completion of ``table``, whose ``turn_advantage`` is filled in.

    Args:
        turns: of all completions, ordered.
    """
    changes = np.any([turns[name][1:] != turns[name][:-1] for name in Key._fields], axis=0)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    rewarded = dict(zip(keys_of(turns[starts]), np.split(turns["advantage"], starts[1:]), strict=True))
    found = {key: rewarded.get(key, turns["advantage"][:0]) for key in keys_of(table)}
    table["turn_advantage"] = [np.abs(values).max(initial=0.0) for values in found.values()]
    return found


def trained_rows(dealt: Dealt) -> np.ndarray:
    """Rows of the table that go through forward and backward, on all ranks."""
    return np.concatenate([rows for mine in dealt for rows in mine])
