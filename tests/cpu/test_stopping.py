"""When training ends before its last step."""

from __future__ import annotations

from ranks import run_ranks


def test_all_ranks_end_when_another_attempt_has_taken_the_run_directory(tmp_path):
    run_ranks("stopping", 2, tmp_path)
