"""Programs that nobody has read: what they can do to the machine, and what they earn."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from grpo_hpc.errors import ConfigError, EnvironmentProblem, RewardError
from grpo_hpc.rewards.code import code, last_block
from grpo_hpc.rewards.pool import Task, WorkerPool
from grpo_hpc.rewards.registry import resolve
from grpo_hpc.rewards.sandbox import Limits, require_isolation, run_program

# root's programs run as nobody, who may not be able to reach an interpreter below /root
PYTHON = "/usr/bin/python3" if os.geteuid() == 0 and Path("/usr/bin/python3").exists() else sys.executable
QUICK = Limits(seconds=2.0, memory_bytes=256 << 20)


@pytest.fixture(params=["namespaces", "limits"])
def run(request):
    """``run(program, text, limits)`` in each isolation."""
    try:
        require_isolation(request.param, PYTHON)
    except EnvironmentProblem as error:
        assert request.param == "namespaces" and "isolation: limits" in error.hint
        pytest.skip(f"no namespaces on this machine: {error.message}")
    return lambda program, text="", limits=QUICK: run_program(program, text, limits, request.param, PYTHON)


def test_a_program_reads_its_input_and_says_how_it_ended(run):
    assert run("print(input()[::-1])", "abc").output == "cba\n"
    assert run("raise SystemExit(7)").code == 7
    assert run("import os; os.kill(os.getpid(), 9)").code == 137
    ran = run("import sys; print('no', file=sys.stderr); print(1 / 0)")
    assert (ran.code, ran.output) == (1, "")


def test_time_and_memory_end(run):
    began = time.monotonic()
    assert run("while True: pass", limits=Limits(seconds=0.5)).timed_out
    assert run("import time; time.sleep(60)", limits=Limits(seconds=0.5)).timed_out
    assert time.monotonic() - began < 30
    ran = run("b = bytearray(1 << 30); print(len(b))")
    assert ran.code != 0 and "1073741824" not in ran.output


def test_endless_output_is_cut(run):
    ran = run("while True: print('x' * 10000)")
    assert ran.cut and len(ran.output) == 1 << 20


def test_a_fork_bomb_and_daemons_leave_nothing_behind(run):
    run("import os\nwhile True:\n try: os.fork()\n except OSError: pass", limits=Limits(seconds=1.0))
    mark = f"left-behind-{os.getpid()}"
    daemon = f"import os, time\nif os.fork() == 0:\n os.setsid(); time.sleep(100)  # {mark}\n"
    began = time.monotonic()
    run(daemon, limits=Limits(seconds=20.0))
    assert time.monotonic() - began < 15, "the daemon did not keep the run from ending"
    ours = [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and b"program.py" in _command_line(pid)]
    assert ours == []


def _command_line(pid):
    try:
        return (pid / "cmdline").read_bytes()
    except OSError:
        return b""


def test_it_cannot_end_who_started_it(run):
    for target in ("os.getppid()", "0"):
        assert run(f"import os\nos.kill({target}, 9)").code in (0, 137)  # process 1 of a namespace cannot be killed
        assert run("print(1)").output == "1\n"


def test_namespaces_hide_files_and_network(tmp_path):
    try:
        require_isolation("namespaces", PYTHON)
    except EnvironmentProblem as error:
        pytest.skip(f"no namespaces on this machine: {error.message}")
    tmp_path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = (
            "import socket, os\n"
            f"for target in ('{tmp_path}/written', '/tmp/written-by-a-program', '/dev/shm/written'):\n"
            "    try: open(target, 'w').write('x'); print('wrote', target)\n"
            "    except OSError: pass\n"
            f"try: socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1); print('connected')\n"
            "except OSError: pass\n"
            "open('own', 'w').write('y'); print(open('own').read())\n"
        )
        ran = run_program(program, "", QUICK, "namespaces", PYTHON)
    assert ran.output == "y\n"
    full = "open('big', 'wb').write(b'x' * (80 << 20)); print('fits')"
    assert "fits" not in run_program(full, "", QUICK, "namespaces", PYTHON).output


def test_a_program_cannot_say_that_there_is_no_isolation(run):
    assert run("import os; print('not isolated: x', flush=True); os._exit(125)").code == 125


# -- the reward -------------------------------------------------------------------------------------------------------

ADD = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
READ = "```\nprint(sum(map(int, input().split())))\n```"
GOOD, BAD = "assert add(1, 2) == 3", "assert add(1, 2) == 4"


def scores(text, tests, **parameters):
    return code([text], [tests], isolation="limits", interpreter=PYTHON, **parameters)[0]


def test_shares_of_tests():
    assert scores(ADD, [GOOD, BAD, GOOD, GOOD]) == 0.75
    assert scores(ADD, [GOOD, BAD], credit="all") == 0.0
    assert scores(ADD, [GOOD], credit="all") == 1.0
    assert scores("no block", [GOOD]) == 0.0
    assert scores("```python\nsyntax error(\n```", [GOOD]) == 0.0
    assert scores(ADD, None) is None and scores(ADD, []) is None
    assert scores(ADD, '["assert add(2, 2) == 4"]') == 1.0


def test_input_and_output():
    cases = [{"input": "1 2\n", "output": "3"}, {"input": "1 2 3", "output": "6  \n\n"}, {"input": "", "output": "0"}]
    assert scores(READ, cases) == pytest.approx(2 / 3)


@pytest.mark.parametrize("early", ["raise SystemExit(0)", "import os; os._exit(0)", "import sys; sys.exit()"])
def test_leaving_before_the_tests_earns_nothing(early):
    assert scores(f"```python\n{early}\n```", ["assert False"]) == 0.0


def test_what_takes_too_long_earns_nothing():
    assert scores("```python\nwhile True: pass\n```", ["pass"], seconds=0.3) == 0.0


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("```python\na\n```", "a\n"),
        ("```\na\n```\n```py\nb\n```", "b\n"),
        ("```python\na\n```\n```bash\nb\n```", "a\n"),
        ("  ```PYTHON\r\na\n  ```", "a\n"),
        ("```python\nnever closed", None),
        ("", None),
    ],
)
def test_the_last_block(text, block):
    assert last_block(text) == block


@pytest.mark.parametrize("column", ["text", '{"input": 1}', [{"input": "x"}], [1], 3])
def test_tests_that_are_none(column):
    with pytest.raises(RewardError, match="column 'tests'"):
        scores(ADD, column)


def test_where_programs_cannot_be_isolated_the_run_does_not_start():
    with pytest.raises((EnvironmentProblem, OSError)):
        resolve(["code"], {"code": {"interpreter": "/nowhere/python"}})
    with pytest.raises(ConfigError, match="isolation"):
        resolve(["code"], {"code": {"isolation": "hope"}})


def test_in_the_worker_pool():
    pool = WorkerPool(["code"], {"code": {"isolation": "limits", "interpreter": PYTHON}}, timeout=20)
    try:
        tasks = [Task("code", {"completions": [text], "tests": [[GOOD]]}) for text in (ADD, "none")]
        assert [outcome.score for outcome in pool.run(tasks)] == [1.0, 0.0]
    finally:
        pool.close()
