from __future__ import annotations

from collections.abc import Callable

import pytest

from grpo_hpc.cli import main


@pytest.fixture
def cli() -> Callable[..., int]:
    """The command line; gives its exit code."""

    def call(*args: object) -> int:
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        return int(str(caught.value.code))

    return call
