"""Parameters of reward functions: keyword-only arguments, whose values the run file may give in ``reward_params``.

    def short(completions: list[str], *, longest: int = 100) -> list[float | None]: ...

``longest`` is a parameter; everything before the star is a column. Annotations are checked strictly ("4" is not 4).
A parameter named ``max_completion_length`` or ``reward_timeout`` has the run's value unless the run file gives another.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from grpo_hpc.errors import ConfigError
from grpo_hpc.python_files import Definition, Function


def declared(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of ``function`` by name."""
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def shown(function: Callable[..., Any]) -> str:
    """Parameters with their defaults, for people."""
    found = declared(function).items()
    return ", ".join(n if p.default is p.empty else f"{n}={p.default!r}" for n, p in found)


def checked(
    column: str, function: Callable[..., Any], given: Mapping[str, Any], run: Mapping[str, Any]
) -> dict[str, Any]:
    """The values to call ``function`` with.

    Args:
        column: the function's name in messages.
        given: what the run file says.
        run: values of the run that stand in for parameters of the same name.

    Raises:
        ConfigError: a parameter is unknown or missing, or its value has the wrong type or lies out of bounds.
    """
    parameters = declared(function)
    required = [name for name, p in parameters.items() if p.default is p.empty]
    check_given(column, parameters, required, given, run)
    hints = get_type_hints(
        vars(function).get("__init__", function) if isinstance(function, type) else function, include_extras=True
    )
    values = {name: run[name] for name in parameters if name in run} | dict(given)
    return {name: _typed(column, name, hints.get(name, Any), value) for name, value in values.items()}


def check_given(
    column: str, known: Iterable[str], required: Iterable[str], given: Mapping[str, Any], run: Iterable[str]
) -> None:
    """Check names only; arguments as for :func:`checked`.

    Raises:
        ConfigError: a parameter is unknown or missing.
    """
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            there_is = f"It has {', '.join(known)}." if known else "It has none."
            hint = f"Did you mean {close[0]}?" if close else there_is
            raise ConfigError(f"rewards.reward_params: the reward {column!r} has no parameter {name!r}", hint)
    missing = [name for name in required if name not in given and name not in run]
    if missing:
        text = f"the reward {column!r} needs {', '.join(missing)}"
        raise ConfigError(text, f"Give it as rewards.reward_params: {{{column}: {{{missing[0]}: ...}}}}.")


def in_source(node: Definition) -> tuple[list[str], list[str]]:
    """Names of all parameters and of the required ones, of a function or class that is only parsed."""
    if isinstance(node, ast.ClassDef):
        made = [entry for entry in node.body if isinstance(entry, ast.FunctionDef) and entry.name == "__init__"]
        return in_source(made[0]) if made else ([], [])
    known = [argument.arg for argument in node.args.kwonlyargs]
    required = [name for name, default in zip(known, node.args.kw_defaults, strict=True) if default is None]
    return known, required


def asked_in_source(node: Definition | None) -> list[str]:
    """What a function, or the objects of a class, that is only parsed asks for by name and has no default for."""
    if isinstance(node, ast.ClassDef):
        calls = [entry for entry in node.body if isinstance(entry, Function) and entry.name == "__call__"]
        return asked_in_source(calls[0])[1:] if calls else []  # behind self
    if node is None:
        return []
    return [argument.arg for argument in node.args.args][: len(node.args.args) - len(node.args.defaults)]


def _typed(column: str, name: str, annotation: Any, value: Any) -> Any:
    try:
        return TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise ConfigError(f"rewards.reward_params.{column}.{name}: {why}, got {value!r}") from None
