"""The reward of code: real programs in the real sandbox."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.errors import ConfigError, EnvironmentProblem, RewardError
from grpo_hpc.rewards.code import code, last_program
from grpo_hpc.rewards.registry import resolve
from grpo_hpc.rewards.worker_pool import Task, WorkerPool


@pytest.fixture
def judge(interpreter):
    return partial(code, reward_timeout=60.0, interpreter=interpreter)


def block(program: str, language: str = "python") -> str:
    return f"Here it is:\n```{language}\n{program}\n```\nDone."


DOUBLE = block("def double(x):\n    return 2 * x")
ECHO = block("while True:\n    try: print(input()[::-1] + '  ')\n    except EOFError: break")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no program", None),
        ("", None),
        ("```python\nx = 1", None),
        ("```\nx\n```", "x"),
        ("```\nx\n```\n```python\ny\n```\n```\nits output\n```", "y"),
        ("```py\nx\n```\n```Python3\ny\n```", "y"),
        ("```bash\nls\n```", None),
        ("```\nx\n```\n```\ny\n```", "y"),
        ("1.  so\n    ```python\n    if x:\n        y\n    ```", "if x:\n    y"),
        ("```python\nx = '''\n```python\n'''\n```", "x = '''\n```python\n'''"),
        ("```" * 50_000, None),
        ("```\n" * 100_001, ""),
    ],
)
def test_the_last_block_is_the_program(text, expected):
    assert last_program(text) == expected


@given(st.text())
def test_any_text_has_a_program_or_none(text):
    assert isinstance(last_program(text), str | None)


def test_all_or_a_fraction(judge):
    tests = ["assert double(2) == 4", "assert double(2) == 5", "assert double('a') == 'aa'"]
    assert judge([DOUBLE] * 3, [tests, tests[::2], json.dumps(tests)]) == [0.0, 1.0, 0.0]
    assert judge([DOUBLE, "nothing"], [tests, tests], score="fraction") == [2 / 3, 0.0]
    assert judge([DOUBLE, "nothing"], [None, None]) == [None, None]


def test_input_and_output(judge):
    tests = [{"input": "ab\ncd\n", "output": "ba\ndc"}, {"input": "", "output": ""}, {"input": "ab", "output": "ab"}]
    assert judge([ECHO], [tests], score="fraction") == [2 / 3]
    fails_at_the_end = block("print('x')\nraise SystemExit(1)")
    assert judge([fails_at_the_end], [[{"input": "", "output": "x"}]]) == [0.0]
    talks = block("import sys\nprint('debug', file=sys.stderr)\nprint('x')")
    assert judge([talks], [[{"input": "", "output": "x\n"}]]) == [1.0]


@pytest.mark.parametrize(
    "cheat",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "quit()",
        "class Equal:\n    __eq__ = lambda *_: True\nraise SystemExit",
        "def double(x): raise SystemExit(0)",
        "def double(x): import os; os._exit(0)",
        "print('ok'); import os; os.kill(os.getpid(), 9)",
        "not python at all",
        "'''",
    ],
)
def test_leaving_early_is_no_success(judge, cheat):
    assert judge([block(cheat)], [["assert double(2) == 4"]]) == [0.0]


def test_what_programs_may_do_without_harm(judge):
    noisy = "from __future__ import annotations\nprint('x' * 1000)\nimport threading, time\n"
    noisy += "threading.Thread(target=time.sleep, args=(100,)).start()\ndef f(): return 1"
    main = "def f(): return 1\nif __name__ == '__main__':\n    print(f(int(input())))"
    assert judge([block(noisy), block(main)], [["assert f() == 1"]] * 2) == [1.0, 1.0]


def test_an_endless_loop_costs_its_time_and_no_more(judge):
    endless = block("def double(x):\n    while x == 3: pass\n    return 2 * x")
    tests = ["double(3)", "double(3)", "assert double(2) == 4"]
    assert judge([endless], [tests], score="fraction", seconds=0.4) == [1 / 3]
    started = time.monotonic()
    assert judge([endless], [tests * 100], score="fraction", seconds=100.0, total_seconds=0.5) == [0.0]
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("tests", [[], "no json", '{"a": 1}', [3], [{"input": "x"}], [{"input": 1, "output": "1"}], 7])
def test_tests_that_are_none(judge, tests):
    with pytest.raises(RewardError, match="column 'tests'"):
        judge([DOUBLE], [tests])


def test_the_start_says_what_is_wrong(interpreter):
    run = {"reward_timeout": 30.0}
    with pytest.raises(ConfigError, match=r"total_seconds 30 is not below rewards\.reward_timeout 30"):
        resolve(["code"], {"code": {"interpreter": interpreter}}, run)
    with pytest.raises(ConfigError, match="isolation"):
        resolve(["code"], {"code": {"isolation": "namespace"}}, run)
    with pytest.raises(EnvironmentProblem, match="/nowhere/python"):
        WorkerPool(["code"], {"code": {"interpreter": "/nowhere/python"}}, {"reward_timeout": 60.0}).start()


def test_in_the_pool(interpreter):
    pool = WorkerPool(["code"], {"code": {"interpreter": interpreter}}, {"reward_timeout": 60.0}, workers=1)
    rows = [(DOUBLE, ["assert double(1) == 2"]), (DOUBLE, ["assert double(1) == 3"]), (DOUBLE, 3)]
    outcomes = pool.run([Task("code", {"assistant_turns": [text], "tests": [tests]}) for text, tests in rows])
    pool.close()
    assert [outcome.score for outcome in outcomes] == [1.0, 0.0, None]
    assert outcomes[2].failure == "error" and "column 'tests'" in outcomes[2].text
