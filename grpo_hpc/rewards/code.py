"""Does the program in the completion pass its tests; run in the sandbox (:mod:`grpo_hpc.rewards.sandbox`)."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import takewhile
from textwrap import dedent
from typing import Annotated, Any, Literal

from pydantic import Field

from grpo_hpc.errors import ConfigError, RewardError
from grpo_hpc.rewards.registry import reward
from grpo_hpc.rewards.sandbox import Isolation, Limits, Ran, require_isolation, run_program

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Run = Callable[..., Ran]
_PYTHON = ("python", "python3", "py")
# The mark is known only to a program that came to the end of its test: leaving early with exit code 0 is no success.
_HARNESS = """
import json, os
mark, program, test = json.loads(input())
space = {"__name__": "solution"}
exec(compile(program, "solution.py", "exec"), space)
exec(compile(test, "test.py", "exec"), space)
print(mark, flush=True)
os._exit(0)
"""


def _check(values: Mapping[str, Any]) -> None:
    """Can programs be run here, and is there time for them."""
    if values["total_seconds"] >= values["reward_timeout"]:
        raise ConfigError(
            f"code: total_seconds {values['total_seconds']:g} is not below rewards.reward_timeout "
            f"{values['reward_timeout']:g}",
            "A slow program must be stopped, and get its score, before the reward function itself runs out of time.",
        )
    require_isolation(values["isolation"], values["interpreter"] or sys.executable)


@reward(
    "code",
    source="functional correctness: HumanEval, arXiv 2107.03374, and APPS, arXiv 2105.09938",
    check=_check,
)
def code(
    assistant_turns: list[str],
    tests: list[Any],
    *,
    reward_timeout: float,
    score: Literal["all", "fraction"] = "all",
    seconds: Seconds = 5.0,
    total_seconds: Seconds = 30.0,
    memory_mib: Count = 1024,
    processes: Count = 16,
    disk_mib: Count = 64,
    isolation: Isolation = "namespaces",
    interpreter: str = "",
) -> list[float | None]:
    """Runs the last Python code block against the column ``tests``: 1 where it passes all, else 0, or the fraction.

    The program is the last Python block, or without one the last block that names no language; without a block the
    score is 0. A test is Python text, run after the program in the same process, or an object ``{"input": text,
    "output": text}``: the program must end well and write the output, spaces at the ends of lines aside.

    Args:
        tests: per completion a list of tests, or JSON text of one; None gives no score.
        reward_timeout: of the run; ``total_seconds`` must be shorter.
        score: ``all`` or ``fraction``.
        seconds: of wall time for each test.
        total_seconds: for all tests of a completion; tests that are not reached count as failed.
        memory_mib: address space of each process.
        processes: at a time, threads included.
        disk_mib: of the files that a program may write.
        isolation: ``namespaces``, or ``limits`` where the machine has no user namespaces.
        interpreter: path of the Python that runs programs; empty for this one.

    Raises:
        RewardError: a row's tests are no such list.
        EnvironmentProblem: this machine lacks the isolation.
    """
    limits = Limits(seconds, memory_mib << 20, processes, disk_mib << 20)
    run = partial(run_program, isolation=isolation, interpreter=interpreter or sys.executable)
    scores: list[float | None] = []
    for text, column in zip(assistant_turns, tests, strict=True):
        if column is None:
            scores.append(None)
            continue
        wanted, program = _tests(column), last_program(text)
        verdicts = iter(()) if program is None else _verdicts(program, wanted, run, limits, total_seconds)
        passed = sum(takewhile(bool, verdicts) if score == "all" else verdicts)
        scores.append(passed / len(wanted) if score == "fraction" else float(passed == len(wanted)))
    return scores


def last_program(text: str) -> str | None:
    """The last block of Python between lines of three backticks, else the last that names no language.

    A block that is not closed is none: the completion was cut off.
    """
    found: dict[bool, str] = {}
    language = ""
    block: list[str] | None = None
    for line in text.split("\n"):
        fence = line.strip()
        if block is None and fence.startswith("```"):
            language, block = fence[3:].strip().lower(), []
        elif block is not None and fence == "```":
            if not language or language in _PYTHON:
                found[bool(language)] = dedent("\n".join(block))
            block = None
        elif block is not None:
            block.append(line)
    return found.get(True, found.get(False))


def _tests(column: Any) -> list[Any]:
    try:
        tests = json.loads(column) if isinstance(column, str) else column
    except ValueError:
        tests = None
    if not isinstance(tests, list) or not tests or not all(map(_is_test, tests)):
        shown = repr(column)
        raise RewardError(
            f"the column 'tests' is {shown if len(shown) <= 100 else shown[:97] + '...'}",
            'It must be a list of tests, each Python text or an object {"input": text, "output": text}.',
        )
    return tests


def _is_test(test: Any) -> bool:
    if isinstance(test, dict):
        return test.keys() == {"input", "output"} and all(isinstance(text, str) for text in test.values())
    return isinstance(test, str)


def _verdicts(program: str, tests: list[Any], run: Run, limits: Limits, total_seconds: float) -> Iterator[bool]:
    """Whether each test is passed; False for those that the time does not suffice for."""
    deadline = time.monotonic() + total_seconds
    for test in tests:
        left = deadline - time.monotonic()
        limited = partial(run, limits=replace(limits, seconds=min(limits.seconds, left)))
        yield left > 0 and _passes(program, test, limited)


def _passes(program: str, test: Any, run: Run) -> bool:
    if isinstance(test, str):
        mark = secrets.token_hex(16)
        ran = run(_HARNESS, json.dumps([mark, program, test]))
        return ran.code == 0 and mark in ran.output
    ran = run(program, test["input"])
    return ran.code == 0 and not ran.cut and _lines(ran.output) == _lines(test["output"])


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
