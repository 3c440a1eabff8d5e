"""What the tests of programs that nobody has read have in common."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.rewards.sandbox import require_isolation


@pytest.fixture(scope="session")
def interpreter() -> str:
    """A Python that programs can run in: as root they run as the user nobody, who may not enter root's folders."""
    user = 65534 if os.geteuid() == 0 else None
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            subprocess.run([path, "-c", ""], check=True, user=user, cwd="/")
        except (OSError, subprocess.CalledProcessError):
            continue
        try:
            require_isolation("namespaces", path)
        except EnvironmentProblem as error:
            pytest.skip(f"the sandbox cannot be tested on this machine: {error.message}")
        return path
    pytest.fail("no Python here can be run by the user nobody; install one in /usr")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Tests run two at a time, and limits of processes count all of a user's: one of these has the user to itself."""
    with (Path(tempfile.gettempdir()) / f"grpo-hpc-tests-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
