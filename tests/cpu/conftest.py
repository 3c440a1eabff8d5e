"""Models shared by the CPU tests, built once per session."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import save_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny("qwen3", tied=False, layers=4)``: folder of a small random model."""

    @functools.cache
    def make(family: str = "llama", tied: bool = True, layers: int = 4) -> Path:
        return save_tiny_model(tmp_path_factory.mktemp(family), family, tied, layers)

    return make
