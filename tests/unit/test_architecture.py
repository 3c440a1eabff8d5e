"""Who may import whom (docs/design.md, "The house"). Read from the source: what is imported lazily counts too."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "grpo_hpc"
HEAVY = {"torch", "megatron", "vllm", "transformers", "safetensors", "transformer_engine"}
ALLOWED = {
    "errors": set(),
    "addresses": set(),
    "control": {"errors"},
    "digests": set(),
    "files": {"errors"},
    "python_files": {"errors"},
    "redaction": set(),
    "saved_files": set(),
    "shipped": set(),
    "html_page": set(),
    "keyed_connection": set(),
    "config": {
        "redaction",
        "errors",
        "files",
        "shipped",
        "algo.losses",
        "algo.estimators",
        "rewards.names",
        "data.template_kwargs",
    },
    "algo": set(),
    "data": {"errors", "files"},
    "observe": {"redaction", "errors", "files", "html_page"},
    "rewards": {"redaction", "addresses", "errors", "files", "python_files"},
    "models": {"control", "errors", "files", "algo.logprob", "algo.mixing"},
    "checkpoint": {"errors", "files", "config.document", "models", "train.megatron.platform"},
    "rollout": {
        "redaction",
        "addresses",
        "keyed_connection",
        "control",
        "errors",
        "files",
        "python_files",
        "config",
        "data",
        "rewards",
        "algo.mixing",
        "models.families",
        "train.megatron.platform",
    },
    "plan": {
        "errors",
        "html_page",
        "config",
        "data.rows",
        "models.shape",
        "models.flops",
        "models.families.read_shape",
        "models.families.counting",
    },
    "cluster": {"redaction", "errors", "files", "shipped", "config"},
    "runs": {
        "redaction",
        "saved_files",
        "errors",
        "files",
        "config",
        "observe",
        "cluster.slurm",
        "cluster.job_states",
        "rewards.names",
    },
    "report": {"errors", "files", "html_page", "keyed_connection", "config", "observe", "plan.measured", "runs"},
    "jobs": {
        "redaction",
        "errors",
        "files",
        "shipped",
        "config",
        "cluster.profile",
        "cluster.sbatch_options",
        "cluster.secrets",
        "cluster.slurm",
        "runs",
        "observe.events",
        "observe.live",
        "jobs.checks.node_reports",
        "jobs.serving.server_steps",
    },
    "jobs.checks": {
        "errors",
        "files",
        "config",
        "cluster.profile",
        "runs.run_dir",
        "runs.attempts",
        "runs.log_ends",
        "data.rows",
        "rewards.columns",
        "rewards.registry",
        "models.families.read_shape",
        "models.on_disk",
        "rollout.engine_arguments",
        "rollout.environments",
    },
    "jobs.serving": {
        "addresses",
        "files",
        "redaction",
        "config",
        "runs.run_dir",
        "runs.clearing.segments",
        "runs.crash",
        "runs.ends",
        "runs.log_ends",
        "runs.rank_log",
        "jobs.ports",
        "jobs.processes",
        "jobs.steps",
        "jobs.checks.node_reports",
    },
    "train": {
        "redaction",
        "control",
        "digests",
        "saved_files",
        "files",
        "errors",
        "config",
        "algo",
        "models",
        "rollout",
        "data",
        "observe",
        "runs.run_dir",
        "runs.rank_log",
        "runs.attempt_hold",
    },
    "images": {"errors", "config", "shipped"},
    "importing": {"redaction", "errors", "files", "config", "cluster.sbatch_options", "rewards.registry"},
    "cli": {
        "algo.losses",
        "algo.estimators",
        "rewards.registry",
        "errors",
        "files",
        "config",
        "importing",
        "plan",
        "cluster",
        "runs",
        "report",
        "observe.completions",
        "jobs",
        "images",
        "checkpoint",
        "observe.jsonl",
    },
}
TORCH_FREE = [
    "errors",
    "addresses",
    "shipped",
    "files",
    "config",
    "plan",
    "importing",
    "cluster",
    "runs",
    "report",
    "html_page",
    "keyed_connection",
    "saved_files",
    "jobs",
    "cli",
]
TORCH_FREE += ["data", "observe", "rewards", "images", "models/families", "models/on_disk", "rollout/environments"]
READ_WITHOUT_TORCH = ["algo/losses.py", "algo/estimators.py"]  # by the run file
READ_WITHOUT_TORCH += [f"models/{name}.py" for name in ("shape", "flops", "weight_map", "layouts")]
MOST_MODULES = 20


@cache
def imports(file: Path, lazy: bool = True) -> frozenset[str]:
    """What a module imports, ``from a import b`` as ``a.b``.

    Args:
        lazy: also what functions import.
    """
    tree = ast.parse(file.read_text())
    found = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def part_of(file: Path) -> str:
    """The part of :data:`ALLOWED` that a module belongs to: of several that fit, the innermost folder."""
    name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    return max((part for part in ALLOWED if f"{name}.".startswith(f"{part}.")), key=len, default="")


def files(part: str) -> list[Path]:
    """Modules of a part, with those of parts inside it."""
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    named = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in named.items()}


@cache
def crossing(file: Path) -> set[str]:
    """What a module imports from parts of the package other than its own, without the package's name."""
    part = part_of(file)
    found = {name.removeprefix("grpo_hpc.") for name in imports(file) if name.startswith("grpo_hpc.")}
    return {name for name in found if part_of(PACKAGE / f"{name.replace('.', '/')}.py") != part}


def reaches(arrow: str, name: str) -> bool:
    return f"{name}.".startswith(f"{arrow}.")


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Sets of names, each of which leads to all others of its set; of names that follow each other in a circle."""
    reached = {name: set(following) for name, following in arrows.items()}
    for middle in arrows:  # Warshall, 1962
        for name, found in reached.items():
            if middle in found:
                reached[name] = found | reached[middle]
    return [{other for other in reached[name] if name in reached[other]} for name in arrows if name in reached[name]]


@pytest.mark.parametrize("part", TORCH_FREE)
def test_torch_free(part):
    for file in files(part) + [PACKAGE / name for name in READ_WITHOUT_TORCH]:
        heavy = {name for name in imports(file, lazy=False) if name.split(".")[0] in HEAVY}
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
    for file in modules().values():
        wrong = {n for n in crossing(file) if not any(reaches(arrow, n) for arrow in ALLOWED[part])}
        assert part_of(file) != part or not wrong, f"{file} imports {wrong}"


@pytest.mark.parametrize("part", ALLOWED)
def test_every_arrow_is_used(part):
    used = set().union(*(crossing(file) for file in modules().values() if part_of(file) == part))
    unused = {arrow for arrow in ALLOWED[part] if not any(reaches(arrow, name) for name in used)}
    assert not unused, f"nothing in {part} imports {unused}: take the arrow away"


def test_every_part_is_listed():
    parts = {path.stem for path in PACKAGE.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"}
    assert parts - {"__init__"} == {part for part in ALLOWED if "." not in part}


def test_no_circle_of_imports():
    """What is imported lazily counts, and what only a type checker imports."""
    known = modules()
    arrows = {
        name: {found for wanted in imports(file) if (found := module_of(wanted, known)) not in (None, name, "grpo_hpc")}
        for name, file in known.items()
    }
    assert sum(map(len, arrows.values())) > len(arrows), "imports are found at all"
    assert circles(arrows) == []


def module_of(name: str, known: dict[str, Path]) -> str | None:
    """The module that ``from module import name`` reads: the one of that name, else the one that holds it."""
    return name if name in known else name.rpartition(".")[0] if name.rpartition(".")[0] in known else None


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}, {"b", "c"}]


def test_no_two_modules_share_a_name():
    names = Counter(file.stem for file in modules().values())
    twins = {name for name, count in names.items() if count > 1} - {"__init__", "__main__"}
    assert not twins


def defined(file: Path) -> set[str]:
    """What a module defines at its top: classes, functions, names of types; no constants."""
    tree = ast.parse(file.read_text()).body
    names = {node.name for node in tree if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)}
    targets = [target for node in tree if isinstance(node, ast.Assign) for target in node.targets]
    return names | {target.id for target in targets if isinstance(target, ast.Name) and not target.id.isupper()}


@pytest.mark.parametrize("word", ["policy", "objective", "server", "pool"])
def test_a_word_that_could_mean_much_names_one_thing(word):
    """A module and the class it is for are one thing; whatever else there is has a name that says more."""
    plural = word.removesuffix("y") + "ies" if word.endswith("y") else word + "s"
    things = [
        f"{name}: {thing}"
        for name, file in modules().items()
        for thing in {found.lower() for found in (file.stem, *defined(file))} & {word, plural}
    ]
    assert len(things) <= 1


def test_no_module_is_called_signal():
    assert "signal" not in {file.stem for file in modules().values()}


def test_a_step_is_short_enough_to_be_read_at_once():
    assert len((PACKAGE / "train" / "step.py").read_text().splitlines()) <= 250


def test_no_folder_is_a_drawer():
    counts = Counter(file.parent for file in modules().values() if file.stem != "__init__")
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}
