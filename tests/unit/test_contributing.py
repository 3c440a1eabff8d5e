"""CONTRIBUTING.md names files, functions and commands; all of them are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
HOUSE = PAGE.partition("## The house")[2].partition("An arrow")[0]
ADDING = PAGE.partition("## Adding")[2].partition("## Style")[0]
CODE = r"`([^`]+)`"


def paths() -> list[str]:
    words = [word for code in re.findall(CODE, PAGE) for word in code.split()]
    return sorted({word for word in words if re.match(r"(grpo_hpc|tests|tools)/|\.", word)})


@pytest.mark.parametrize("path", paths())
def test_named_files_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_modules_that_the_design_names_exist() -> None:
    named = set(re.findall(r"\b((?:\w+/)+\w+\.py)\b", (ROOT / "docs" / "design.md").read_text()))
    assert len(named) > 30
    assert {name for name in named if not any((place / name).exists() for place in (ROOT, ROOT / "grpo_hpc"))} == set()


def test_enough_is_named() -> None:
    assert len(paths()) > 30


def test_links_lead_somewhere() -> None:
    assert all((ROOT / target).exists() for target in re.findall(r"\]\(([^)]+)\)", PAGE))


def test_the_picture_has_every_room() -> None:
    rooms = {folder.name for folder in (ROOT / "grpo_hpc").iterdir() if (folder / "__init__.py").exists()}
    assert {room for room in rooms if f"{room}/" not in HOUSE} == set()
    assert {name for name in re.findall(r"(\w+)/", HOUSE) if name not in rooms} == {"checks", "serving", "megatron"}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(_?[A-Za-z_]+)`", ADDING)) - {"algorithm"}))
def test_what_is_to_be_extended_is_in_a_named_module(name: str) -> None:
    files = [ROOT / path for path in re.findall(r"`(grpo_hpc/[\w/]+\.py)", ADDING)]
    defined = rf"^(?:def|class) {name}\b|^{name}\b.* = "
    assert any(re.search(defined, file.read_text(), re.MULTILINE) for file in files)


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)`", PAGE)) <= targets


def test_ci_runs_what_the_page_says() -> None:
    parts = re.search(r"for part in (.*); do", (ROOT / ".ci" / "run").read_text())[1].split()
    named = re.findall(r"^\| `make ([\w-]+)`", PAGE, re.MULTILINE)
    assert parts == [part for part in named if part not in ("test-gpu", "fuzz")]
