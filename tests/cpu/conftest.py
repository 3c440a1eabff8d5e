"""Models shared by the CPU tests, built once per session."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import save_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny("qwen3", tied=False)``: folder of a small random model."""

    @functools.cache
    def make(family: str = "llama", tied: bool = True) -> Path:
        return save_tiny_model(tmp_path_factory.mktemp(family), family, tied)

    return make
