"""What travels from sampling to training: a completion's tokens as a :class:`Sample`, and its summary for every rank.

A sample is one flat sequence of token ids with a mask of what the policy sampled in it, so several turns, foreign
tokens between them and several weight versions fit into it. Its arrays, the *payload*, are made once, never changed,
and travel once: to the rank that trains it. What all ranks must know of it to agree about advantages, weights and who
trains what is a row of numbers, its *summary*.

A completion is one sample, or several *branches* where its history was rewritten in between: what was sampled in one
of them is foreign in the others. Together they are an episode, which has one reward and one vote.

Shapes: T tokens, n of them sampled, L layers with experts, k experts per token, B samples, F reward functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from grpo_hpc.errors import RolloutError

REASONS = ("stop", "length", "repetition", "turns", "abort", "error")
"""Why an engine stopped, or an episode ended without it: ``turns`` when there were too many. A summary holds the place
in this list."""

LENGTH = REASONS.index("length")
GIVEN_UP = REASONS[REASONS.index("abort") :]
"""What is no answer."""
_ENDED = REASONS.index("abort")

FAILURES = ("", "error", "timeout", "killed")
"""What became of a reward function on a completion; a summary holds the place in this list."""


COUNTED = ("tool_calls", "tool_failures")
"""What is counted in episodes with tools."""


class Key(NamedTuple):
    """What names a sample within a run.

    Attributes:
        position: place of its prompt in the endless sample order. Samples of one position are a group.
        sample: number of the completion within its group.
        branch: above 0 where one completion became several sequences.
    """

    position: int
    sample: int
    branch: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One token sequence and what the engine said of it; read-only arrays.

    Attributes:
        tokens: int32 [T], as they went into the engine and came out of it, never tokenised again.
        mask: bool [T], what the policy sampled. The first token is never sampled.
        logprobs: float32 [n], the engine's log-probability of each sampled token.
        versions: int32 [n], optimizer steps behind the weights that each of them was sampled with.
        turns: int32 [turns, 2]: sampled tokens up to the end of a turn, and why it ended (place in ``REASONS``).
        routing: uint8 or int16 [T - 1, L * k], experts that each token but the last went to; [0, 0] if not recorded.
        turn_rewards: float32 [turns], what the environment gave for each turn, NaN where it gave nothing; [0] where it
            gives none at all.

    Raises:
        RolloutError: the arrays do not fit together.
    """

    key: Key
    tokens: np.ndarray
    mask: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    turns: np.ndarray
    routing: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    turn_rewards: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        count, sampled = len(self.tokens), int(self.mask.sum())
        told = {"mask": (len(self.mask), count), "log-probabilities": (len(self.logprobs), sampled)}
        told["versions"] = len(self.versions), sampled
        told["turns"] = (int(self.turns[-1, 0]) if len(self.turns) else 0), sampled
        if self.routing.size:
            told["routing"] = len(self.routing), count - 1
        if self.turn_rewards.size:
            told["rewards of turns"] = len(self.turn_rewards), len(self.turns)
        for name, (length, wanted) in told.items():
            if length != wanted:
                raise RolloutError(f"completion {tuple(self.key)}: {name} for {length} where there are {wanted}")
        if count and self.mask[0]:
            raise RolloutError(
                f"completion {tuple(self.key)} begins with a sampled token: nothing was there to sample from"
            )
        if np.isinf(self.turn_rewards).any():
            raise RolloutError(f"completion {tuple(self.key)}: a turn has an infinite reward")
        arrays = (self.tokens, self.mask, self.logprobs, self.versions, self.turns, self.routing, self.turn_rewards)
        for array in arrays:
            array.flags.writeable = False

    @classmethod
    def single_turn(
        cls,
        key: Key,
        prompt: np.ndarray,
        response: np.ndarray,
        logprobs: np.ndarray,
        version: int,
        reason: str,
        routing: np.ndarray | None = None,
    ) -> Sample:
        """One answer to one prompt. Of ``routing`` the first T - 1 rows count."""
        tokens = np.concatenate([prompt, response]).astype(np.int32)
        mask = np.zeros(len(tokens), bool)
        mask[len(prompt) :] = True
        end = REASONS.index(reason) if reason in REASONS else REASONS.index("error")
        arrays = (
            np.asarray(logprobs, np.float32),
            np.full(len(response), version, np.int32),
            np.array([[len(response), end]], np.int32),
        )
        if routing is None:
            return cls(key, tokens, mask, *arrays)
        return cls(key, tokens, mask, *arrays, routing[: len(tokens) - 1])

    @property
    def response(self) -> np.ndarray:
        """The sampled tokens, int32 [n]."""
        return self.tokens[self.mask]

    @property
    def turn_lengths(self) -> np.ndarray:
        """Sampled tokens of each turn: int32 [turns]."""
        return np.diff(self.turns[:, 0], prepend=0)

    @property
    def end(self) -> int:
        """Why the last turn ended: place in ``REASONS``."""
        return int(self.turns[-1, 1])

    @property
    def reason(self) -> str:
        """Why the last turn ended."""
        return REASONS[self.end]

    @property
    def answers(self) -> bool:
        """Whether it can be scored and learnt from: the engine gave it up neither before nor after its first token."""
        return self.end < _ENDED and len(self.logprobs) > 0


def summary_type(rewards: int) -> np.dtype:
    """The type of a row of summaries with ``rewards`` reward functions.

    Fields: ``position``, ``sample``, ``branch`` (the key), ``tokens`` (T), ``sampled`` (n), ``turns``, ``turn_rewards``
    (numbers in that array), ``lowest_turn`` and ``highest_turn`` (the extremes of them, NaN where there is none),
    ``routing`` (L * k) and ``wide`` (bytes of each such number), ``oldest`` and ``newest`` weight version, ``end``
    (place in ``REASONS``), ``answers``, ``owner`` (the rank that holds the payload), ``reward`` (NaN without a score),
    ``rewards`` [F], ``failures`` [F] and ``failed``, of the environment (places in ``FAILURES``), ``tool_calls`` and
    ``tool_failures``, ``environment_s`` and ``policy_s`` (seconds that the episode waited for them). What follows
    from them is worked out on every rank alike: ``advantage``, ``turn_advantage`` (the largest magnitude of what its
    turns add to that), and ``token_weight``, that of each of its tokens in the loss of its optimizer step.
    """
    counts = ("sample", "branch", "tokens", "sampled", "turns", "turn_rewards", "routing", "oldest", "newest", "owner")
    return np.dtype(
        [("position", "<i8")]
        + [(name, "<i4") for name in (*counts, *COUNTED)]
        + [("wide", "u1"), ("end", "u1"), ("answers", "?"), ("failed", "u1")]
        + [(name, "<f4") for name in ("lowest_turn", "highest_turn", "turn_advantage", "environment_s", "policy_s")]
        + [(name, "<f8") for name in ("reward", "advantage", "token_weight")]
        + [("rewards", "<f8", (rewards,)), ("failures", "u1", (rewards,))]
    )


def summaries(samples: Sequence[Sample], owner: int, rewards: int = 0) -> np.ndarray:
    """Summaries of ``samples`` that lie on the rank ``owner``, without any score: [B]. Branches are neighbours.

    Where the engine gave up one branch of an episode, no branch of it answers.
    """
    table = np.zeros(len(samples), summary_type(rewards))
    columns: dict[str, list[int]] = {
        **{name: [s.key[at] for s in samples] for at, name in enumerate(Key._fields)},
        **{name: [len(getattr(s, name)) for s in samples] for name in ("tokens", "turns", "turn_rewards")},
        "sampled": [len(s.logprobs) for s in samples],
        "routing": [s.routing.shape[1] for s in samples],
        "wide": [s.routing.itemsize for s in samples],
        "oldest": [s.versions.min() if len(s.versions) else 0 for s in samples],
        "newest": [s.versions.max() if len(s.versions) else 0 for s in samples],
        "end": [s.end for s in samples],
    }
    # by columns: in the rows of a structured array numbers are set one by one, which takes twice as long
    for name, values in columns.items():
        table[name] = values
    table["lowest_turn"] = table["highest_turn"] = np.nan
    for number in np.flatnonzero(table["turn_rewards"]):
        given = samples[number].turn_rewards
        if not np.isnan(given).all():
            table["lowest_turn"][number], table["highest_turn"][number] = np.nanmin(given), np.nanmax(given)
    given_up = np.bincount(episode_of(table), table["end"] >= _ENDED) > 0
    table["answers"] = (table["sampled"] > 0) & ~given_up[episode_of(table)]
    table["owner"], table["reward"], table["rewards"], table["token_weight"] = owner, np.nan, np.nan, 1.0
    return table


def episode_of(table: np.ndarray) -> np.ndarray:
    """The number of each row's episode among those of ``table``, where branches are neighbours: int64 [B]."""
    new = np.ones(len(table), bool)
    new[1:] = (table["position"][1:] != table["position"][:-1]) | (table["sample"][1:] != table["sample"][:-1])
    return new.cumsum() - 1


def episodes(table: np.ndarray) -> np.ndarray:
    """One row for each episode, what its branches share as it is; lengths and turns of all of them, the last end."""
    episode = episode_of(table)
    first = np.flatnonzero(np.diff(episode, prepend=-1))
    last = np.append(first[1:], len(table))[: len(first)] - 1
    found = table[first]
    found["end"] = table["end"][last]
    combined: list[tuple[np.ufunc, tuple[str, ...]]] = [
        (np.add, ("tokens", "sampled", "turns", "turn_rewards")),
        (np.minimum, ("oldest",)),
        (np.maximum, ("newest",)),
        (np.fmin, ("lowest_turn",)),
        (np.fmax, ("highest_turn",)),
        (np.logical_or, ("answers",)),
    ]
    for function, names in combined if len(table) else ():
        for name in names:
            found[name] = function.reduceat(table[name], first)
    return found


TURN = np.dtype(
    [("position", "<i8")]
    + [(name, "<i4") for name in ("sample", "branch", "turn")]
    + [(name, "<f4") for name in ("reward", "advantage")]
)
"""The type of a row that says what an environment gave for a turn, NaN where nothing, and what that is worth."""


def turn_rows(table: np.ndarray, held: Mapping[Key, Sample]) -> np.ndarray:
    """Rows of type ``TURN`` for the turns of all completions of ``table`` that have ``turn_rewards``.

    Those of a completion without a score, because its environment failed or the engine gave it up, have none either.

    Args:
        held: at least these completions.
    """
    chosen = table[table["turn_rewards"] > 0]
    rows = np.zeros(int(chosen["turn_rewards"].sum()), TURN)
    scored, at = chosen["answers"] & ~np.isnan(chosen["reward"]), 0
    for key, counts in zip(keys_of(chosen), scored, strict=True):
        rewards = held[key].turn_rewards
        part = rows[at : at + len(rewards)]
        part["position"], part["sample"], part["branch"] = key
        part["turn"], part["reward"] = np.arange(len(rewards)), rewards if counts else np.nan
        at += len(rewards)
    return rows


def keys_of(table: np.ndarray) -> list[Key]:
    """The keys of some summaries."""
    return [Key(*row) for row in zip(*(table[name].tolist() for name in Key._fields), strict=True)]


def in_order(table: np.ndarray) -> np.ndarray:
    """``table`` ordered by key."""
    return table[np.lexsort((table["branch"], table["sample"], table["position"]))]
