"""What this package replaces in Megatron-Core is all in one module, and each target is where it was."""

from __future__ import annotations

import ast
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import grpo_hpc
from grpo_hpc.models.patches import PATCHES


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.function.__name__)
def test_targets_exist_in_the_installed_version(patch):
    assert version("megatron-core") in patch.versions, "read it against this version, then add it"
    assert patch.targets and (patch.function.__doc__ or "").count(".") > 1, "say what is replaced, and why"
    for target in patch.targets:
        assert exists(target), target


@pytest.mark.parametrize("gone", ["GPTModel.outer_layer", "GTPModel.output_layer", "no_such_function"])
def test_a_target_that_is_gone_is_found_out(gone):
    assert not exists(f"megatron.core.models.gpt.gpt_model:{gone}")


def exists(target: str) -> bool:
    """Read from the source: what needs TransformerEngine cannot be imported without it."""
    module, _, name = target.partition(":")
    tree: ast.AST = ast.parse(Path(find_spec(module).origin).read_text())
    owner, _, attribute = name.rpartition(".")
    if owner:
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == owner]
        return any(attribute in names_of(node) for node in classes)
    return attribute in names_of(tree)


def names_of(tree: ast.AST) -> set[str]:
    """Functions, imports, variables and attributes of ``self`` that are made there."""
    nodes = list(ast.walk(tree))
    found = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    found |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    stored = [node for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)]
    return found | {getattr(node, "id", None) or getattr(node, "attr", "") for node in stored}


def test_no_class_is_replaced_elsewhere():
    package = Path(grpo_hpc.__file__).parent
    for file in set(package.rglob("*.py")) - {package / "models" / "patches.py"}:
        stored = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(getattr(n, "ctx", None), ast.Store)]
        assert "__class__" not in {getattr(node, "attr", "") for node in stored}, file
