"""Calling one reward function on one completion, trusting nothing that it returns."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from grpo_hpc.errors import RewardError

RewardFunction = Callable[..., Sequence[float | None]]


def wanted(name: str, function: RewardFunction, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``offered`` that the function declares, or all of them when it takes ``**columns``.

    Raises:
        RewardError: it asks for something that is not offered.
    """
    everything = inspect.signature(function).parameters.values()
    own = {parameter.name for parameter in everything if parameter.kind is parameter.KEYWORD_ONLY}
    parameters = [parameter for parameter in everything if parameter.name not in own]
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if required and parameter.name not in offered:
            close = difflib.get_close_matches(parameter.name, offered, n=1)
            meant = f"Did you mean {close[0]}? " if close else ""
            raise RewardError(
                f"it asks for {parameter.name!r}, which is no column of the data",
                f"{meant}There is: {', '.join(sorted(offered))}.",
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return {column: values for column, values in offered.items() if column not in own}
    return {parameter.name: offered[parameter.name] for parameter in parameters if parameter.name in offered}


def only_score(returned: Any) -> float | None:
    """The one number in what a function returned for one completion; None and NaN are no score.

    Raises:
        RewardError: it is not a list of one finite number or None.
    """
    if not isinstance(returned, list | tuple):
        raise RewardError(f"it returned a {type(returned).__name__}, not a list of numbers")
    if len(returned) != 1:
        raise RewardError(f"it returned {len(returned)} scores for 1 completion")
    value = returned[0]
    if value is None:
        return None
    if not isinstance(value, Real):
        text = f"it returned a {type(value).__name__} as score"
        raise RewardError(text, "A score must be a number, or None for no score.")
    number = float(value)
    if math.isinf(number):
        raise RewardError(f"it returned {number}", "A score must be finite; return None for no score.")
    return None if math.isnan(number) else number


def described(error: BaseException) -> tuple[str, str]:
    """What went wrong, and a hint, for people who wrote the function."""
    if isinstance(error, RewardError):
        return error.message, error.hint
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    origin = f"Raised at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}." if trace is not None else ""
    return f"{type(error).__name__}: {error}", origin
