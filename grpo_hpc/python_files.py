"""Python files that people name in a run file: parsed where only names matter, imported where they are to work."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from grpo_hpc.errors import ConfigError

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def parse(path: Path, wanted: str) -> ast.Module:
    """The syntax tree of a file that is to hold ``wanted``, such as ``the reward function 'short'``.

    Raises:
        ConfigError: there is no such file, or it is no Python; with the line.
    """
    if not path.is_file():
        raise ConfigError(f"the file {path} of {wanted} does not exist")
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{path}{line}, where {wanted} should be: {error}") from None


def require_name(path: Path, tree: ast.Module, name: str, kind: str) -> None:
    """Check that a file binds ``name``; ``kind`` is what it is called in the message, such as ``function``.

    Raises:
        ConfigError: it does not; with the closest name.
    """
    names = _names_in(tree)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"It defines {', '.join(sorted(names)) or 'nothing'}."
        raise ConfigError(f"{path} has no {kind} {name!r}", hint)


def definition(tree: ast.Module, name: str) -> Definition | None:
    """Where ``name`` is defined at the top of a module; the last place counts."""
    found = [node for node in tree.body if isinstance(node, Definition) and node.name == name]
    return found[-1] if found else None


def import_file(path: Path) -> ModuleType:
    """The module that a file becomes. It is run here and now.

    Raises:
        ConfigError: it cannot be imported; with the line of it that failed.
    """
    module_name = f"grpo_hpc_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file", "Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"importing {_place(path, error)} failed: {type(error).__name__}: {error}") from error
    return module


def _place(path: Path, error: BaseException) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines else str(path)


def _names_in(tree: ast.Module) -> set[str]:
    """Names that a module binds anywhere outside functions and classes."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, Definition):
            names.add(node.name)
            continue
        if isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        pending.extend(ast.iter_child_nodes(node))
    return names
