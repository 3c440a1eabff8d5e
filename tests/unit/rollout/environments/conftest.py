"""Pools of environments that are written into the test's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool


@pytest.fixture
def pool_of(tmp_path: Path) -> Iterator[Callable[..., EnvironmentPool]]:
    """``pool_of(text, name, params, **options)``: a pool for ``name`` in a file with this text."""
    made: list[EnvironmentPool] = []

    def make(text: str, name: str = "", params: dict[str, Any] | None = None, **options: Any) -> EnvironmentPool:
        file = tmp_path / "mine.py"
        file.write_text(text)
        environment = f"{file}:{name}" if name else str(file)
        made.append(EnvironmentPool(environment, params, log=tmp_path / "printed.log", **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
