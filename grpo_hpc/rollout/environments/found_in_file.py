"""What ``rollout.environment`` names: tools, a class that plays, or an agent. The file says which.

``my_tools.py`` means all public functions that the file defines, ``my_tools.py:calculator`` one of them,
``my_tools.py:TOOLS`` a list of functions. ``my_env.py:Maze`` is a class: with ``start`` and ``reply`` it is an
environment as :mod:`grpo_hpc.rollout.environments.protocol` has it, with ``reset`` and ``step`` a game, and with
``run`` an agent.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_type_hints

from pydantic import TypeAdapter, ValidationError

from grpo_hpc.config.environment_name import file_and_name
from grpo_hpc.errors import ConfigError
from grpo_hpc.files import with_home
from grpo_hpc.python_files import definition, import_file, parse, require_name
from grpo_hpc.rollout.environments.gym_classes import gym_adapter
from grpo_hpc.rollout.environments.tool_functions import Tool, ToolEnvironment

Kind = Literal["tools", "gym", "class", "agent"]
_METHODS: dict[Kind, set[str]] = {"class": {"start", "reply"}, "gym": {"reset", "step"}, "agent": {"run"}}
_WANTED = "It needs the methods start and reply, or reset and step, or run."


class Found(NamedTuple):
    """What a file holds.

    Attributes:
        make: makes the environment of one episode, or an agent for one.
    """

    kind: Kind
    make: Callable[[], Any]


def parts_of(environment: str) -> tuple[Path, str]:
    """File and name; no name means all functions of the file."""
    file, name = file_and_name(environment)
    return with_home(file), name


def check_environment(environment: str) -> Kind | None:
    """Check that :func:`load_environment` will find it; the file is parsed, not run.

    Returns:
        what it is, as far as the text tells: of a class with base classes, or of an imported name, nothing is known.

    Raises:
        ConfigError: the file, or a name in it, is not there or is of no use.
    """
    path, name = parts_of(environment)
    tree = parse(path, "rollout.environment")
    if not name:
        return "tools"
    require_name(path, tree, name, "environment")
    node = definition(tree, name)
    if isinstance(node, ast.ClassDef):
        return _kind_in_source(path, node)
    return "tools" if node is not None else None


def require_rewards(kind: Kind | None, columns: Sequence[str], *, turns: bool) -> None:
    """Check that an environment of this kind gives the rewards that a run wants of it.

    Args:
        columns: names of the rewards that are its own.
        turns: whether its rewards of single turns count.

    Raises:
        ConfigError: it gives none.
    """
    if turns and kind in ("tools", "agent"):
        whose = (
            "functions that the policy calls give none" if kind == "tools" else "an agent gives one at its end alone"
        )
        text = f"algorithm.turn_advantage_coef weighs rewards of turns, and {whose}"
        raise ConfigError(text, "A class with start and reply, or reset and step, can: docs/environments.md.")
    if kind == "tools" and columns:
        text = f"rewards.reward_funcs names {columns[0]}, but functions that the policy calls give no rewards"
        raise ConfigError(text, "A class can: docs/environments.md. Else take it out, and name another reward.")


def load_environment(environment: str, params: Mapping[str, Any]) -> Found:
    """Import the file and see what it holds.

    Args:
        params: keyword arguments of the class.

    Raises:
        ConfigError: it cannot be imported or is no environment, or a parameter is wrong.
    """
    path, name = parts_of(environment)
    tree = parse(path, "rollout.environment")
    if name:
        require_name(path, tree, name, "environment")
    module = import_file(path)
    found: Any = getattr(module, name) if name else _public_functions(path, module)
    if isinstance(found, type):
        return _class(path, found, params)
    functions: Sequence[Any] = found if isinstance(found, list | tuple) else [found]
    if wrong := [each for each in functions if not inspect.isroutine(each)]:
        raise ConfigError(f"{name!r} in {path} is a {type(wrong[0]).__name__}, not a function or a class")
    if params:
        text = "rollout.environment_params are for a class; functions get their arguments from the policy"
        raise ConfigError(text)
    tools = [Tool(function) for function in functions]
    _require_different([tool.name for tool in tools])
    return Found("tools", lambda: ToolEnvironment(tools))


def _public_functions(path: Path, module: ModuleType) -> Sequence[Callable[..., Any]]:
    own = [f for name, f in vars(module).items() if inspect.isfunction(f) and not name.startswith("_")]
    functions = [function for function in own if function.__module__ == module.__name__]
    if not functions:
        raise ConfigError(f"{path} defines no function", f"A class is named behind the file: {path.name}:Name")
    return functions


def _require_different(names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"rollout.environment has two functions {twice[0]!r}", "Every function needs its own name.")


def _class(path: Path, kind: type, params: Mapping[str, Any]) -> Found:
    has = {name for methods in _METHODS.values() for name in methods if callable(getattr(kind, name, None))}
    what = next((what for what, methods in _METHODS.items() if methods <= has), None)
    if what is None:
        raise ConfigError(f"the class {kind.__name__} in {path} is no environment", _WANTED)
    if what != "gym" or "env_config" not in inspect.signature(kind).parameters:
        _check_params(kind, params)
    return Found(what, gym_adapter(kind, params) if what == "gym" else lambda: kind(**params))


def _check_params(kind: type, params: Mapping[str, Any]) -> None:
    parameters = inspect.signature(kind).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name, value in params.items():
        if name not in parameters:
            close = difflib.get_close_matches(name, parameters, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"It has {', '.join(parameters) or 'none'}."
            raise ConfigError(f"rollout.environment_params: {kind.__name__} has no parameter {name!r}", hint)
        _check_type(kind, name, value)
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    if missing := [name for name in needed if name not in params]:
        text = f"rollout.environment_params: {kind.__name__} needs {', '.join(missing)}"
        raise ConfigError(text, f"Give it as rollout.environment_params: {{{missing[0]}: ...}}.")


def _check_type(kind: type, name: str, value: Any) -> None:
    hints = get_type_hints(vars(kind).get("__init__", lambda: None))
    try:
        TypeAdapter(hints.get(name, Any)).validate_python(value, strict=True)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise ConfigError(f"rollout.environment_params.{name}: {why}, got {value!r}") from None


def _kind_in_source(path: Path, node: ast.ClassDef) -> Kind | None:
    defined = {entry.name for entry in node.body if isinstance(entry, ast.FunctionDef | ast.AsyncFunctionDef)}
    kind = next((kind for kind, methods in _METHODS.items() if methods <= defined), None)
    if kind is None and not node.bases:
        raise ConfigError(f"{path}:{node.lineno}: the class {node.name} is no environment", _WANTED)
    return kind
