"""The log of a process that prints without end."""

from __future__ import annotations

import subprocess
import sys

from grpo_hpc.runs.rank_log import shorten

CHATTERS = """
import pathlib, subprocess, sys, time
from grpo_hpc.runs import rank_log
rank_log._LOOK_S = 0.01
log = pathlib.Path(sys.argv[1])
rank_log.redirect_output(log, 10_000)
for number in range(20_000):
    print("line", number)
deadline = time.monotonic() + 20
sys.stdout.flush()
while log.stat().st_size > 10_000 and time.monotonic() < deadline:
    time.sleep(0.01)
subprocess.run([sys.executable, "-c", "print('a child goes on')"])
"""


def test_a_rank_may_print_so_much(tmp_path):
    log = tmp_path / "rank_0.log"
    subprocess.run([sys.executable, "-c", CHATTERS, log], check=True)
    lines = log.read_text().splitlines()
    assert log.stat().st_size < 11_000
    assert lines[0] == "line 0" and lines[-2:] == ["line 19999", "a child goes on"]
    assert all(line.startswith(("line ", "a child", "... ")) for line in lines)
    assert any("bytes are left out: a log has 10,000 at most" in line for line in lines)


def test_a_short_log_is_left_alone(tmp_path):
    log = tmp_path / "rank_0.log"
    log.write_text("x\n" * 50)
    shorten(log, 100)
    assert log.read_text() == "x\n" * 50
