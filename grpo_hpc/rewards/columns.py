"""Columns of the data that reward functions need, against the rows that there are."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_hpc.errors import ConfigError

Needed = Mapping[str, Sequence[str]]  # columns by reward, as registry.needed_columns gives them


def require_columns(needed: Needed, file: str | Path, rows: int, filled: Mapping[str, int]) -> None:
    """Check that every column that a reward needs has a value in some row: without one it can score nothing.

    Args:
        file: the data file, for messages.
        rows: how many it has.
        filled: by column, in how many rows it is not null.

    Raises:
        ConfigError: a column is not there, or is null in all rows.
    """
    for reward, columns in needed.items():
        for column in columns:
            asks = f"the reward {reward!r} needs the column {column!r}"
            if column not in filled:
                raise ConfigError(f"{asks}, and no row of {file} has it", _there_is(column, filled))
            if not filled[column]:
                raise ConfigError(f"{asks}, and it is null in all {rows} rows of {file}")


def _there_is(column: str, filled: Mapping[str, int]) -> str:
    close = difflib.get_close_matches(column, filled, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}Its columns are: {', '.join(sorted(filled)) or 'the chat alone'}."


def lacking(needed: Needed, columns: Mapping[str, Any]) -> frozenset[str]:
    """The rewards that a row with these ``columns`` has a null for."""
    return frozenset(name for name, wanted in needed.items() if any(columns.get(column) is None for column in wanted))
