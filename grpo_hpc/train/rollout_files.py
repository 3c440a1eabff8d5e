"""A half-used rollout on disk: one npz for each rank that has a part of it, beside the table that all ranks share.

Layout within a checkpoint::

    rollout/table.npz      summaries of the rollout and of what is carried over, optimizer steps made from it
    rollout/rank_R.npz     what rank R held: payloads, log-probabilities and routing of what its replica trains (one
                           rank speaks for each replica), and completions that are carried over
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from grpo_hpc.errors import CheckpointError, ConfigError
from grpo_hpc.rollout.collect import Collected
from grpo_hpc.rollout.exchange import Exchange, from_payloads, payloads
from grpo_hpc.rollout.sample import Key, keys_of
from grpo_hpc.rollout.scoring import Scored
from grpo_hpc.train.experience import Dealt, Experience
from grpo_hpc.train.packing import with_advantage

Deal = Callable[[np.ndarray, np.ndarray], list[Dealt]]
_TABLE = "table.npz"


@dataclass(frozen=True)
class Place:
    """This rank among those that write.

    Attributes:
        speaks: whether it is for this rank to say what its replica holds.
        last_stage: whether log-probabilities are used here.
    """

    rank: int
    size: int
    speaks: bool
    last_stage: bool


def write_rollout(folder: Path, experience: Experience | None, carried: Collected, place: Place) -> None:
    """Write this rank's part into ``folder``, which is there; nothing where nothing is left."""
    if place.rank == 0:
        table = carried.table[:0] if experience is None else experience.table
        used = -1 if experience is None else experience.used
        np.savez(folder / _TABLE, table=table, carried=carried.table, used=np.array(used))
    parts: dict[str, np.ndarray] = {}
    if experience is not None and place.speaks:
        parts |= _trained(experience)
    if carried.scored:
        parts |= _carried(carried)
    if parts:
        np.savez(folder / f"rank_{place.rank:05d}.npz", **parts)  # type: ignore[arg-type]  # numpy types a flag only


def read_rollout(folder: Path, exchange: Exchange, deal: Deal, place: Place) -> tuple[Experience | None, Collected]:
    """What :func:`write_rollout` wrote, on this rank of a layout that may be another.

    Args:
        deal: says who trains what of a table of which some completions are known.

    Raises:
        CheckpointError: it is damaged, or this layout needs completions that it does not have.
    """
    try:
        with np.load(folder / _TABLE) as stored:
            table, carried, used = stored["table"], stored["carried"], int(stored["used"])
        files = {int(path.stem.removeprefix("rank_")): path for path in sorted(folder.glob("rank_*.npz"))}
        experience = None if used < 0 else _read_experience(table, used, list(files.values()), exchange, deal, place)
        return experience, _read_carried(carried, files, place)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the rollout in {folder} cannot be read: {error}") from error


# -- what is trained -----------------------------------------------------------------------------------------------


def _trained(experience: Experience) -> dict[str, np.ndarray]:
    keys = list(experience.samples)
    rows = _rows_of(experience.table, keys)
    parts = {"trained": experience.table[rows], "payloads": payloads(experience.samples[key] for key in keys)}
    for name in ("old", "ref", "routing", "turns"):
        values: Mapping[Key, np.ndarray] | None = getattr(experience, name)
        if values is not None:
            parts[name] = np.concatenate([values[key] for key in keys])
    return parts


def _read_experience(
    table: np.ndarray, used: int, files: Sequence[Path], exchange: Exchange, deal: Deal, place: Place
) -> Experience:
    of_file = [_member(path, "trained") for path in files]
    stored = {key for rows in of_file if rows is not None for key in keys_of(rows)}
    known = np.array([key in stored for key in keys_of(table)])
    if missing := int((table["answers"] & (table["token_weight"] != 0) & with_advantage(table) & ~known).sum()):
        raise CheckpointError(f"{missing} completions of the rollout in {files[0].parent} are missing")
    try:
        steps = deal(table, known)
    except ConfigError as error:
        raise CheckpointError(
            f"the half-used rollout in {files[0].parent} cannot go on in this layout: {error.message}",
            f"Resume it with the {len(files)} data-parallel ranks that it was saved with, or a divisor of them.",
        ) from error
    mine = {key for dealt in steps for batch in dealt[exchange.data_rank] for key in keys_of(table[batch])}
    experience = Experience(table, steps, {}, used)
    for path, rows in zip(files, of_file, strict=True):
        if rows is not None and mine & set(keys_of(rows)):
            _take(experience, path, rows, mine, place)
    return experience


def _take(experience: Experience, path: Path, rows: np.ndarray, mine: set[Key], place: Place) -> None:
    """Add what the file at ``path`` holds of ``mine``."""
    with np.load(path) as stored:
        found = from_payloads(keys_of(rows), rows, stored["payloads"])
        values = {"routing": rows["tokens"] - 1, "turns": rows["turn_rewards"]}
        if place.last_stage:
            values |= {"old": rows["sampled"], "ref": rows["sampled"]}
        for name, lengths in values.items():
            if name not in stored.files:
                continue
            parts = np.split(stored[name], lengths.cumsum()[:-1])
            told = {key: part for key, part in zip(keys_of(rows), parts, strict=True) if key in mine}
            setattr(experience, name, (getattr(experience, name) or {}) | told)
    experience.samples |= {key: sample for key, sample in found.items() if key in mine}


# -- what is carried over ------------------------------------------------------------------------------------------


def _carried(carried: Collected) -> dict[str, np.ndarray]:
    keys = sorted(carried.scored)
    told = json.dumps([_told(carried.scored[key]) for key in keys]).encode()
    return {
        "carried": carried.table[_rows_of(carried.table, keys)],
        "carried_payloads": payloads(carried.scored[key].sample for key in keys),
        "carried_texts": np.frombuffer(told, np.uint8),
    }


def _told(scored: Scored) -> dict[str, object]:
    return {each.name: getattr(scored, each.name) for each in fields(scored) if each.name != "sample"}


def _read_carried(table: np.ndarray, files: Mapping[int, Path], place: Place) -> Collected:
    table["owner"] %= place.size
    scored: dict[Key, Scored] = {}
    for rank, path in files.items():
        rows = _member(path, "carried")
        if rank % place.size != place.rank or rows is None:
            continue
        with np.load(path) as stored:
            samples = from_payloads(keys_of(rows), rows, stored["carried_payloads"])
            texts = json.loads(stored["carried_texts"].tobytes())
        for (key, sample), told in zip(samples.items(), texts, strict=True):
            scored[key] = Scored(sample, **told)
    return Collected(table, scored)


# -- arrays --------------------------------------------------------------------------------------------------------


def _member(path: Path, name: str) -> np.ndarray | None:
    with np.load(path) as stored:
        return stored[name] if name in stored.files else None


def _rows_of(table: np.ndarray, keys: Sequence[Key]) -> np.ndarray:
    row_of = {key: row for row, key in enumerate(keys_of(table))}
    return np.array([row_of[key] for key in keys], np.int64)
