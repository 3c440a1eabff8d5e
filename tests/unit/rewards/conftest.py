"""What the tests of programs that nobody has read have in common."""

from __future__ import annotations

import os
import subprocess
import sys

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
