"""The rule that cases are held to can be broken: each way of breaking it is seen."""

from __future__ import annotations

import pytest

from tests.fuzz.forks import Forks


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("@spin",), "too much CPU"),
        (("@eat",), "a traceback"),
        (("@raise_an_error",), "a traceback"),
        (("@end_with", "1"), "exit code 1"),
        (("@end_with", "2"), "exit code 2 without a word"),
        (("@die",), "exit code -9"),
    ],
    ids=str,
)
def test_faults_are_seen(forks: Forks, words: tuple[str, ...], fault: str) -> None:
    assert fault in forks.run({}, words, cpu_s=1)[0].faults((0, 2))
    assert forks.run({}, ("plan", "quickstart"))[0].faults((0,)) == [], "the next one is not harmed"
