"""Finding reward functions by name.

A reward function takes completions and returns one number (or None: no score) for each:

    @reward("short")
    def short(completions: list[str]) -> list[float | None]:
        return [1.0 if len(text) < 100 else 0.0 for text in completions]

It may ask for more by naming parameters: every column of the data set (as a list with one value per completion),
``prompts`` (the chats), ``finish_reasons`` and ``completion_ids``; or for all of them by ``**columns``.
A run file names built-in functions by their registered name and others by ``path/to/file.py:function``.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from grpo_hpc.errors import ConfigError

RewardFunction = Callable[..., Sequence[float | None]]

_registered: dict[str, RewardFunction] = {}


def reward(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator: make a function known under ``name``."""

    def register(function: RewardFunction) -> RewardFunction:
        _registered[name] = function
        return function

    return register


def resolve(names: Sequence[str]) -> dict[str, RewardFunction]:
    """The functions that ``names`` mean, in that order, by column name (registered name or function name).

    Raises:
        ConfigError: a name is unknown, a file cannot be loaded, or two functions have the same name.
    """
    check_names(names)
    return {_column(name): _load(name) if _is_file(name) else _registered[name] for name in names}


def registered_names() -> list[str]:
    """Names of the built-in functions, sorted."""
    from grpo_hpc.rewards import builtin  # noqa: F401  (registers the built-in functions)

    return sorted(_registered)


def described() -> dict[str, str]:
    """What each registered function rewards: the first line of its docstring."""
    return {name: (_registered[name].__doc__ or "").strip().partition("\n")[0] for name in registered_names()}


def check_names(names: Sequence[str]) -> None:
    """Check that :func:`resolve` will find ``names``; files are parsed, not run.

    Raises:
        ConfigError: as for :func:`resolve`.
    """
    from grpo_hpc.rewards import builtin  # noqa: F401  (registers the built-in functions)

    taken: dict[str, str] = {}
    for name in names:
        _check_file(name) if _is_file(name) else _check_registered(name)
        column = _column(name)
        if column in taken:
            both = "is named twice" if taken[column] == name else f"is also the name of {taken[column]}"
            raise ConfigError(f"the reward function {name} {both}", "Every reward function needs a name of its own.")
        taken[column] = name


def _is_file(name: str) -> bool:
    return ":" in name or name.endswith(".py")


def _column(name: str) -> str:
    return name.rpartition(":")[2]


def _check_registered(name: str) -> None:
    if name in _registered:
        return
    close = difflib.get_close_matches(name, _registered, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Known are {', '.join(sorted(_registered))}."
    raise ConfigError(f"there is no reward function {name!r}", f"{hint} Your own is given as path/to/file.py:function.")


def _parts(name: str) -> tuple[Path, str]:
    file, _, function = name.rpartition(":")
    return Path(file).expanduser(), function


def _check_file(name: str) -> None:
    if ":" not in name:
        raise ConfigError(f"the reward function {name!r} names a file only", f"Name its function: {name}:function")
    path, function = _parts(name)
    if not path.is_file():
        raise ConfigError(f"the file {path} of the reward function {function!r} does not exist")
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{path}{line}, where the reward function {function!r} should be: {error}") from None
    names = _names_in(tree)
    if function not in names:
        close = difflib.get_close_matches(function, names, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"It defines {', '.join(sorted(names)) or 'nothing'}."
        raise ConfigError(f"{path} has no function {function!r}", hint)


def _names_in(tree: ast.Module) -> set[str]:
    """Names that a module binds anywhere outside functions and classes."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        pending.extend(ast.iter_child_nodes(node))
    return names


def _load(name: str) -> RewardFunction:
    path, function = _parts(name)
    module_name = f"grpo_hpc_reward_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file", "Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, function)
    if not callable(found) or inspect.iscoroutinefunction(found):
        kind = "an async function" if callable(found) else f"a {type(found).__name__}"
        raise ConfigError(f"{function!r} in {path} is {kind}, not a plain function")
    return found
