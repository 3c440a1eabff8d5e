"""Python values as JSON bytes that give back equal values of equal types, also where JSON alone would not.

Parquet and ``datasets`` know dates, decimals, bytes and pairs. Such a value becomes ``{"$python": [its type, what it is
made from]}``. Unlike a pickle, reading it runs nothing.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

_MARK = "$python"

# name -> (type, what JSON can hold of it, the value made from that); a subclass stands before its base
_TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "timedelta": (timedelta, lambda v: [v.days, v.seconds, v.microseconds], lambda v: timedelta(*v)),
    "decimal": (Decimal, str, Decimal),
    "bytes": (bytes, lambda v: b64encode(v).decode(), b64decode),
    "tuple": (tuple, list, tuple),
    "items": (dict, lambda v: [list(item) for item in v.items()], dict),  # keys that are no text, or our own mark
}


def to_json(value: Any) -> bytes:
    """``value`` as JSON.

    Raises:
        TypeError: it holds something of a type that cannot be kept; names the type.
        RecursionError: it is nested too deeply.
    """
    return json.dumps(_marked(value), separators=(",", ":")).encode()


def from_json(data: bytes) -> Any:
    """What :func:`to_json` was given."""
    return json.loads(data, object_hook=_unmarked)


def _marked(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):  # truth values are ints
        return value
    if isinstance(value, list):
        return [_marked(entry) for entry in value]
    if isinstance(value, dict) and _MARK not in value and all(isinstance(key, str) for key in value):
        return {key: _marked(entry) for key, entry in value.items()}
    for name, (kind, plain, _) in _TYPES.items():
        if isinstance(value, kind):
            return {_MARK: [name, _marked(plain(value))]}
    raise TypeError(f"a value of the type {type(value).__name__}")


def _unmarked(found: dict[str, Any]) -> Any:
    if _MARK not in found:
        return found
    name, plain = found[_MARK]
    return _TYPES[name][2](plain)
