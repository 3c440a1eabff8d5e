"""Does the program that a completion holds pass its tests. docs/rewards.md says how far running it is safe."""

from __future__ import annotations

import json
import re
import secrets
import sys
from typing import Annotated, Any, Literal

from pydantic import Field

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.registry import reward
from grpo_hpc.rewards.sandbox import Isolation, Limits, require_isolation, run_program

_FENCED = re.compile(
    r"^[ \t]*```(?:python|py|python3)?[ \t]*\r?\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
Positive = Annotated[float, Field(gt=0)]


def _prepare(*, isolation: Isolation = "namespaces", interpreter: str | None = None, **_limits: Any) -> None:
    require_isolation(isolation, interpreter or sys.executable)


@reward("code", source="this package; the idea: DeepSeek-R1, arXiv 2501.12948, 2.2.2", prepare=_prepare)
def code(
    completions: list[str],
    tests: list[Any],
    *,
    credit: Literal["fraction", "all"] = "fraction",
    seconds: Positive = 5.0,
    memory_mb: Annotated[int, Field(ge=16)] = 1024,
    isolation: Isolation = "namespaces",
    interpreter: str | None = None,
) -> list[float | None]:
    """Share of the tests in the column ``tests`` that the last Python block of the text passes, or 1 for all, else 0.

    The block stands between lines of three backticks; a text without one gets 0. A test is Python text that is run
    behind the program and passes when it raises nothing, or an object ``{"input": ..., "output": ...}``: the program
    then reads the input and must write the output, white space at the ends of lines apart. Each test is a run of its
    own, with the limits given here.

    Args:
        tests: a list of tests per completion, or JSON text of one; None or an empty list gives no score.

    Raises:
        RewardError: a test is neither.
        EnvironmentProblem: programs cannot be isolated here.
    """
    limits = Limits(seconds=seconds, memory_bytes=memory_mb << 20)
    scores: list[float | None] = []
    for text, column in zip(completions, tests, strict=True):
        cases, program = _cases(column), last_block(text)
        if not cases:
            scores.append(None)
        elif program is None:
            scores.append(0.0)
        else:
            scores.append(_share(program, cases, credit, limits, isolation, interpreter or sys.executable))
    return scores


def last_block(text: str) -> str | None:
    """The last fenced block of ``text`` that is Python or names no language."""
    found = _FENCED.findall(text)
    return str(found[-1]) if found else None


def _share(
    program: str, cases: list[Any], credit: str, limits: Limits, isolation: Isolation, interpreter: str
) -> float:
    passed = 0
    for case in cases:
        if _passes(program, case, limits, isolation, interpreter):
            passed += 1
        elif credit == "all":
            return 0.0
    return passed / len(cases)


def _passes(program: str, case: Any, limits: Limits, isolation: Isolation, interpreter: str) -> bool:
    if isinstance(case, str):
        mark = secrets.token_hex(16)  # a program that leaves early with exit code 0 has passed no tests
        ran = run_program(f"{program}\n\n{case}\n\nprint(); print({mark!r})\n", "", limits, isolation, interpreter)
        return ran.code == 0 and ran.output.rstrip("\n").endswith(f"\n{mark}")
    ran = run_program(program, str(case["input"]), limits, isolation, interpreter)
    return ran.code == 0 and not ran.cut and _lines(ran.output) == _lines(str(case["output"]))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _cases(column: Any) -> list[Any]:
    try:
        cases = json.loads(column) if isinstance(column, str) else column
    except ValueError:
        cases = column
    if cases is None:
        return []
    if not isinstance(cases, list) or not all(_is_case(case) for case in cases):
        raise RewardError(
            f"the column 'tests' is {column!r}",
            'It must be a list of Python texts, or of objects {"input": ..., "output": ...}.',
        )
    return cases


def _is_case(case: Any) -> bool:
    return isinstance(case, str) or (isinstance(case, dict) and {"input", "output"} <= case.keys())
