"""Who may import whom (docs/design.md, "The house"). Read from the source: what is imported lazily counts too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "grpo_hpc"
HEAVY = {"torch", "megatron", "vllm", "transformers", "safetensors", "transformer_engine"}
ALLOWED = {
    "errors": set(),
    "addresses": set(),
    "control": {"errors"},
    "files": set(),
    "shipped": set(),
    "config": {"errors", "shipped", "algo.losses", "algo.estimators", "rewards.names"},
    "algo": set(),
    "data": {"errors"},
    "observe": {"errors", "files"},
    "rewards": {"errors"},
    "models": {"control", "errors", "algo"},
    "checkpoint": {"errors", "models", "train.megatron.platform"},
    "rollout": {"addresses", "errors", "config", "data", "rewards", "algo.mixing", "train.megatron.platform"},
    "plan": {"errors", "config", "models.shape", "models.flops"},
    "cluster": {"errors", "files", "shipped", "config"},
    "runs": {"errors", "files", "config", "observe", "cluster", "rewards.names"},
    "jobs": {
        "addresses",
        "errors",
        "files",
        "shipped",
        "config",
        "cluster",
        "runs",
        "data",
        "rewards",
        "observe",
        "models.shape",
    },
    "train": {
        "control",
        "errors",
        "config",
        "algo",
        "models",
        "rewards",
        "rollout",
        "data",
        "observe",
        "runs.run_dir",
        "runs.rank_log",
    },
    "images": {"errors", "config", "shipped"},
    "importing": {"errors", "config", "rewards.registry"},
    "cli": {
        "algo.losses",
        "algo.estimators",
        "rewards.registry",
        "errors",
        "config",
        "importing",
        "plan",
        "cluster",
        "runs",
        "jobs",
        "images",
        "checkpoint",
    },
}


def imports(file: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(file.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize(
    "part",
    [
        "errors",
        "addresses",
        "shipped",
        "config",
        "importing",
        "plan",
        "files",
        "cluster",
        "runs",
        "jobs",
        "cli",
        "data",
        "observe",
        "rewards",
        "images",
    ],
)
def test_torch_free(part):
    registries = [PACKAGE / "algo" / f"{name}.py" for name in ("losses", "estimators")]  # the run file reads them
    for file in files(part) + registries:
        heavy = {name for name in imports(file, top_level_only=True) if name.split(".")[0] in HEAVY}
        assert not heavy, f"{file} imports {heavy}"


def test_algo_imports_torch_alone():
    for file in files("algo"):
        foreign = {
            n
            for n in imports(file)
            if n.split(".")[0]
            not in {"torch", "__future__", "collections", "dataclasses", "functools", "inspect", "typing"}
            and not n.startswith("grpo_hpc.algo.")
        }
        assert not foreign, f"{file} imports {foreign}"


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows(part):
    for file in files(part):
        for name in imports(file):
            if not name.startswith("grpo_hpc."):
                continue
            target = name.removeprefix("grpo_hpc.")
            own = target.split(".")[0] == part
            assert own or any(f"{target}.".startswith(f"{arrow}.") for arrow in ALLOWED[part]), f"{file} imports {name}"


def test_every_part_is_listed():
    parts = {path.stem for path in PACKAGE.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"}
    assert parts - {"__init__"} == set(ALLOWED)
