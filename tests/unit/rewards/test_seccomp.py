"""Which system calls programs do without; that they really do is seen in test_sandbox.py."""

from __future__ import annotations

import pytest

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.rewards.seccomp import refusing_filter


def test_a_machine_whose_calls_are_not_known_is_told_before_a_program_runs():
    with pytest.raises(EnvironmentProblem, match="system calls of riscv64 are not known, those of x86_64 and aarch64"):
        refusing_filter("riscv64")


def test_each_machine_has_numbers_of_its_own():
    one, other = refusing_filter("x86_64"), refusing_filter("aarch64")
    assert one != other
    assert len(one) == len(other) and len(one) % 8 == 0
