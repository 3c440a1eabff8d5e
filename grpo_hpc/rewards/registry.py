"""Finding reward functions by name.

A reward function takes completions and returns one number (or None: no score) for each:

    @reward("short")
    def short(completions: list[str]) -> list[float | None]:
        return [1.0 if len(text) < 100 else 0.0 for text in completions]

It may ask for more by naming it before the star: every column of the data set (as a list with one value per
completion), ``prompts`` (the chats), ``finish_reasons``, ``completion_ids`` and ``assistant_turns`` (what the chat
template began the answer with, such as ``<think>``, and the completion); or for all of them by ``**columns``.
Keyword-only arguments are parameters (:mod:`grpo_hpc.rewards.reward_params`).
A run file names built-in functions by their registered name and others by ``path/to/file.py:function``, with
``column=`` before it where the column is to have another name.

A class is a reward model: it is made once, in a worker process of its own; the parameters are those of its
``__init__``, and it is called like a function, with several completions at a time (:mod:`grpo_hpc.rewards.batching`).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from grpo_hpc.errors import ConfigError
from grpo_hpc.files import with_home
from grpo_hpc.python_files import definition, import_file, parse, require_name
from grpo_hpc.rewards.batching import together
from grpo_hpc.rewards.calling import RewardFunction
from grpo_hpc.rewards.names import column_of, target_of
from grpo_hpc.rewards.reward_params import asked_in_source, check_given, checked, declared, in_source, shown

# besides the columns of the data
OFFERED = ("completions", "prompts", "finish_reasons", "completion_ids", "assistant_turns")
_Reward = TypeVar("_Reward", bound=Callable[..., Any])

Parameters = Mapping[str, Mapping[str, Any]]  # values of parameters by the column name of their function
Check = Callable[[Mapping[str, Any]], None]

_BUILT_IN = ("accuracy", "builtin", "classifier", "code", "judge", "lengths", "texts")
_OF_THE_RUN = ("max_completion_length", "reward_timeout")
_registered: dict[str, Any] = {}  # functions and classes
_sources: dict[str, str] = {}
_checks: dict[RewardFunction, Check] = {}


def reward(name: str, *, source: str = "", check: Check | None = None) -> Callable[[_Reward], _Reward]:
    """Decorator: make a function or class known under ``name``.

    Args:
        source: where it comes from.
        check: called with the values of all parameters where the function will run, before a model is loaded; raises
            what is wrong with them, or with the machine.
    """

    def register(function: _Reward) -> _Reward:
        _registered[name], _sources[name] = function, source
        if check is not None:
            _checks[function] = check
        return function

    return register


def resolve(
    names: Sequence[str], given: Parameters | None = None, run: Mapping[str, Any] | None = None
) -> dict[str, RewardFunction]:
    """The functions that ``names`` mean, in that order, by column name (registered name or function name).

    Args:
        given: parameters from the run file; they are bound to the functions.
        run: values of the run that stand in for parameters of the same name.

    Raises:
        ConfigError: a name is unknown, a file cannot be loaded, two functions have the same name, or a parameter is
            wrong.
        EnvironmentProblem: this machine lacks what a function needs.
    """
    check_names(names, given)
    found: dict[str, RewardFunction] = {}
    for name in names:
        target, column = target_of(name), column_of(name)
        function = _load(target) if _is_file(target) else _registered[target]
        found[column] = _bound(column, function, (given or {}).get(column, {}), run or {})
    return found


def _bound(column: str, function: RewardFunction, given: Mapping[str, Any], run: Mapping[str, Any]) -> RewardFunction:
    values = checked(column, function, given, run)
    if function in _checks:
        _checks[function]({name: p.default for name, p in declared(function).items()} | values)
    if isinstance(function, type):
        return together(column, function(**values))
    return partial(function, **values) if values else function


def is_model(name: str) -> bool:
    """Whether ``name`` means a class; a file is parsed, not run."""
    _register_built_in()
    target = target_of(name)
    if not _is_file(target):
        return isinstance(_registered[target], type)
    path, wanted = _parts(target)
    return isinstance(definition(ast.parse(path.read_bytes(), str(path)), wanted), ast.ClassDef)


def needed_columns(names: Sequence[str], given: Parameters | None = None) -> dict[str, list[str]]:
    """The columns of the data that each of ``names`` cannot do without, by column name of the function.

    A file is parsed, not run; of a function that it imports nothing is known. Names and parameters must be right, see
    :func:`check_names`.
    """
    _register_built_in()
    found: dict[str, list[str]] = {}
    for name in names:
        target, column = target_of(name), column_of(name)
        if _is_file(target):
            path, function = _parts(target)
            required = asked_in_source(definition(ast.parse(path.read_bytes(), str(path)), function))
        else:
            required = _needed_by_registered(_registered[target], (given or {}).get(column, {}))
        found[column] = [each for each in required if each not in OFFERED]
    return found


def _needed_by_registered(function: Any, given: Mapping[str, Any]) -> list[str]:
    if hasattr(function, "needs"):  # it depends on parameters
        return list(function.needs(**given))
    return [p.name for p in _asked(function) if p.default is p.empty]


def _asked(function: Any) -> list[inspect.Parameter]:
    """What a function, or the object that a class makes, asks for by name."""
    parameters = inspect.signature(function.__call__ if isinstance(function, type) else function).parameters
    return [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]


def registered_names() -> list[str]:
    """Names of the built-in functions, sorted."""
    _register_built_in()
    return sorted(_registered)


def described() -> list[tuple[str, str, dict[str, str]]]:
    """Name, first line of the docstring, and source, columns and parameters of each registered function."""
    return [(name, _summary(_registered[name]), _details(name)) for name in registered_names()]


def _summary(function: RewardFunction) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]


def _details(name: str) -> dict[str, str]:
    function = _registered[name]
    columns = [p.name for p in _asked(function) if p.name not in OFFERED]
    details = {"source": _sources[name], "columns": ", ".join(columns), "parameters": shown(function)}
    return {label: text for label, text in details.items() if text}


def _register_built_in() -> None:
    for module in _BUILT_IN:
        importlib.import_module(f"grpo_hpc.rewards.{module}")


def check_names(names: Sequence[str], given: Parameters | None = None) -> None:
    """Check that :func:`resolve` will find ``names`` and their parameters; files are parsed, not run.

    Raises:
        ConfigError: as for :func:`resolve`; types of the parameters of functions in files are left to it.
    """
    _register_built_in()
    taken: dict[str, str] = {}
    for name in names:
        column, target = column_of(name), target_of(name)
        parameters = (given or {}).get(column, {})
        _check_file(target, parameters) if _is_file(target) else _check_registered(column, target, parameters)
        if column in taken:
            both = "is named twice" if taken[column] == name else f"is also the name of {taken[column]}"
            raise ConfigError(f"the reward function {name} {both}", "Every reward function needs a name of its own.")
        taken[column] = name
    for column in given or {}:
        if column not in taken:
            close = difflib.get_close_matches(column, taken, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"There is {', '.join(taken)}."
            raise ConfigError(f"rewards.reward_params: {column!r} is not among rewards.reward_funcs", hint)


def _is_file(name: str) -> bool:
    return ":" in name or name.endswith(".py")


def _nothing_to_check(**_values: Any) -> None: ...


def _check_registered(column: str, name: str, given: Mapping[str, Any]) -> None:
    if name in _registered:
        function = _registered[name]
        values = checked(column, function, given, dict.fromkeys(_OF_THE_RUN, 1))
        getattr(function, "check", _nothing_to_check)(**values)
        return
    close = difflib.get_close_matches(name, _registered, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Known are {', '.join(sorted(_registered))}."
    raise ConfigError(f"there is no reward function {name!r}", f"{hint} Your own is given as path/to/file.py:function.")


def _parts(name: str) -> tuple[Path, str]:
    file, _, function = name.rpartition(":")
    return with_home(file), function


def _check_file(name: str, given: Mapping[str, Any]) -> None:
    if ":" not in name:
        raise ConfigError(f"the reward function {name!r} names a file only", f"Name its function: {name}:function")
    path, function = _parts(name)
    tree = parse(path, f"the reward function {function!r}")
    require_name(path, tree, function, "function")
    if (node := definition(tree, function)) is not None:
        check_given(function, *in_source(node), given, _OF_THE_RUN)


def _load(name: str) -> RewardFunction:
    path, function = _parts(name)
    found = getattr(import_file(path), function)
    if not callable(found):
        raise ConfigError(f"{function!r} in {path} is a {type(found).__name__}, not a function")
    return found
