"""Small JSON records of a run directory, each read into the dataclass that it was written from; and what damage is."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from grpo_hpc.errors import ConfigError, GrpoHpcError, of_system
from grpo_hpc.files import read_text

Record = TypeVar("Record")
_LARGEST = 2**24  # bytes
DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, GrpoHpcError)
"""What reading a file raises that holds something else than was written there."""


def read_record(path: Path, kind: type[Record]) -> Record:
    """The record in ``path``; fields that ``kind`` does not know are those of a later version, and left out.

    Raises:
        ConfigError: it holds something else.
        EnvironmentProblem: it cannot be read.
    """
    wanted: Any = kind
    try:
        found: Record = _adapter(wanted).validate_json(read_text(path, _LARGEST), strict=True)
    except OSError as error:
        raise of_system(error) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is damaged: it is not UTF-8") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = "".join(f"{part}: " for part in first["loc"])
        raise ConfigError(f"{path} is damaged: {at}{first['msg']}") from None
    if bad := [name for name, value in vars(found).items() if isinstance(value, float) and not math.isfinite(value)]:
        raise ConfigError(f"{path} is damaged: {bad[0]}: it is not finite")
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def damage(path: Path, error: BaseException) -> GrpoHpcError:
    """What was raised while the records in ``path`` were read, as one of our errors."""
    if isinstance(error, GrpoHpcError):
        return error
    if isinstance(error, OSError):
        return of_system(error)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return ConfigError(f"the records in {path} are damaged: {said[:300]}")
