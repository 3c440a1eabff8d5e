"""The budgets of fuzzing, and the account of what was tried.

``make test`` tries a few cases of every target, the same ones every time; ``make fuzz`` tries new ones for minutes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.fuzz.forks import Forks, Outcome

REPORT = Path(__file__).parents[2] / "build" / "fuzz.md"
LONG_S = 80  # seconds of each target, of which two run at a time
ROUND = 25  # cases of one seed
LONG_CPU_S = 2
_SETTINGS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
_PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
settings.register_profile("short", derandomize=True, max_examples=100, phases=_PHASES, **_SETTINGS)
settings.register_profile("long", max_examples=ROUND, phases=_PHASES, **_SETTINGS)


class Fuzzing:
    """Feeds cases to a server and holds every outcome against the rule."""

    def __init__(self, forks: Forks, long: bool) -> None:
        self.forks, self.long = forks, long
        self.codes: Counter[int] = Counter()
        self.slowest = 0.0

    def run(self, files: dict[str, bytes], *commands: Sequence[str], allowed: Sequence[int] = (0, 2)) -> list[Outcome]:
        """Run ``commands`` where ``files`` are; what breaks the rule fails the test."""
        found = self.forks.run(files, *commands)
        for outcome in found:
            self.codes[outcome.code] += 1
            self.slowest = max(self.slowest, outcome.cpu)
            faults = outcome.faults(allowed)
            if self.long and outcome.cpu > LONG_CPU_S:
                faults.append(f"{outcome.cpu:.1f} s of CPU")
            assert not faults, f"{', '.join(faults)}\n{outcome}"
        return found

    def cases(self, strategy: SearchStrategy[Any], check: Callable[[Any], None], examples: int = 100) -> None:
        """Give ``check`` cases of ``strategy``: a few that are always the same, or new ones until the time is over."""
        if not self.long:
            settings(settings.get_profile("short"), max_examples=examples)(given(strategy)(_once(check)))()
            return
        end = time.monotonic() + LONG_S
        for number in count(time.time_ns()):
            if time.monotonic() > end:
                return
            seed(number)(settings(settings.get_profile("long"))(given(strategy)(_once(check))))()


def _once(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def case(value: Any) -> None:
        check(value)

    return case


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A server."""
    with Forks() as found:
        yield found


@pytest.fixture
def fuzzing(
    forks: Forks, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[Fuzzing]:
    """The server, and the account of what it is fed."""
    found = Fuzzing(forks, request.config.getoption("--hypothesis-profile") == "long")
    yield found
    record_property("fuzz", {"codes": dict(found.codes), "slowest": found.slowest})


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print and write how many commands of each target ended how."""
    rows = [
        (report.nodeid.rpartition("::")[2], value)
        for kind in ("passed", "failed", "")
        for report in terminalreporter.stats.get(kind, [])
        for name, value in getattr(report, "user_properties", [])
        if name == "fuzz" and report.when == "teardown"
    ]
    if not rows:
        return
    lines = ["| target | commands | exit codes | slowest, s of CPU |", "|---|---|---|---|"]
    for target, found in sorted(rows):
        codes = {int(code): number for code, number in found["codes"].items()}
        shown = ", ".join(f"{code}: {codes[code]:,}" for code in sorted(codes))
        lines.append(f"| {target} | {sum(codes.values()):,} | {shown} | {found['slowest']:.2f} |")
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(f"{date.today()}\n\n" + "\n".join(lines) + "\n")
    terminalreporter.write_line("\n".join(["", *lines, f"written to {REPORT}"]))
