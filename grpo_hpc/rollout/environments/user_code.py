"""How code of the user is called, with seeds that come from rows, async or not, and what it returns is written."""

from __future__ import annotations

import inspect
import json
from hashlib import blake2b
from typing import Any

from grpo_hpc.data.rows import Row


def row_seed(row: Row) -> int:
    """A seed for the episodes of a row, which begin alike in every run and after every resume.

    The row's column ``seed`` where it is a whole number, else 31 bits made from the row's name.
    """
    given = row.columns.get("seed")
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    return int.from_bytes(blake2b(row.prompt_id.encode(errors="replace"), digest_size=4).digest(), "big") >> 1


def as_json(value: Any) -> str:
    """``value`` as JSON text; scalars of numpy and its like are numbers.

    Raises:
        TypeError, ValueError, RecursionError: it is no JSON.
    """
    return json.dumps(value, ensure_ascii=False, default=_number)


def _number(value: Any) -> Any:
    if not hasattr(value, "item"):
        raise TypeError(f"an object of the type {type(value).__name__} is neither text nor JSON")
    return value.item()


async def resolved(returned: Any) -> Any:
    """What a function returned, or what the coroutine that it returned comes to."""
    return await returned if inspect.isawaitable(returned) else returned
