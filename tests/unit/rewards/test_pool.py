"""The worker pool: real processes that hang, die, lie and wait."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path

import pytest

from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.rewards.worker_pool import Task, WorkerPool

OWN = """
import asyncio, os, signal, sys, time
from pathlib import Path

def mine(completions, folder, *, factor: float = 1.0):
    print("noise on standard output")
    text, here = completions[0], Path(folder[0])
    if text == "hang":
        (here / "hanging").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "exit":
        sys.exit(3)
    if text == "garbage":
        os.write(int(sys.argv[2]), bytes([0, 0, 0, 2]) + b"{x")
        time.sleep(1000)
    if text == "raise":
        raise ZeroDivisionError("no luck")
    if text == "once" and not (here / "again").exists():
        (here / "again").touch()
        os._exit(1)
    if text == "nan":
        return [float("nan")]
    if text == "inf":
        return [float("inf")]
    if text == "two":
        return [1.0, 2.0]
    return [len(text) * factor]

async def blocks(completions, folder):
    time.sleep(1000 if completions[0] == "hang" else 0)
    return [1.0]

async def slow(completions, folder):
    here = Path(folder[0])
    mark = here / f"running-{completions[0]}"
    mark.touch()
    await asyncio.sleep(0.1)
    together = len(list(here.glob("running-*")))
    mark.unlink()
    if completions[0] == "hang":
        await asyncio.sleep(1000)
    return [together]
"""


FICKLE = """
import os
from pathlib import Path

loaded = Path(__file__).parent / "loaded"
if loaded.exists():
    raise ValueError("only once")
loaded.touch()

def f(completions):
    if completions[0] == "die":
        os._exit(1)
    return [1.0]
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path}/own.py"


@pytest.fixture
def pool_of(own):
    pools = []

    def make(name, **options):
        pools.append(WorkerPool([f"{own}:{name}"], **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def tasks(column, texts, own):
    return [Task(column, {"completions": [text], "folder": [str(Path(own).parent)]}) for text in texts]


def test_one_bad_completion_does_not_touch_the_others(pool_of, own):
    pool = pool_of("mine", timeout=1.0)
    texts = ["a", "hang", "bb", "die", "ccc", "exit", "raise", "nan", "inf", "two", "x" * 300_000, "garbage"]
    outcomes = pool.run(tasks("mine", texts, own))
    assert [o.score for o in outcomes] == [1.0, None, 2.0, None, 3.0, None, None, None, None, None, 300_000.0, None]
    assert [o.failure for o in outcomes] == [
        "", "timeout", "", "killed", "", "error", "error", "", "error", "error", "", "killed",
    ]  # fmt: skip
    assert "ZeroDivisionError: no luck" in outcomes[6].text and "own.py:" in outcomes[6].hint
    stuck = int((Path(own).parent / "hanging").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)
    assert pool.run(tasks("mine", ["a"], own))[0].score == 1.0


def test_a_failure_is_tried_again(pool_of, own):
    assert pool_of("mine", retries=1).run(tasks("mine", ["once"], own))[0].score == 4.0


def test_parameters_reach_the_worker(pool_of, own):
    assert pool_of("mine", given={"mine": {"factor": 0.5}}).run(tasks("mine", ["aa"], own))[0].score == 1.0


def test_async_functions_run_together_up_to_the_limit(pool_of, own):
    texts = [*map(str, range(7)), "hang"]
    outcomes = pool_of("slow", timeout=0.6, concurrency=4).run(tasks("slow", texts, own))
    assert max(o.score for o in outcomes[:7]) == 4.0
    assert outcomes[7].failure == "timeout"


def test_a_column_that_is_not_there(pool_of, own):
    outcome = pool_of("mine").run([Task("mine", {"completions": ["a"], "foldr": [""]})])[0]
    assert "'folder'" in outcome.text and "Did you mean foldr?" in outcome.hint


def test_functions_that_cannot_be_loaded_are_known_at_the_start(tmp_path):
    failing, ending = tmp_path / "failing.py", tmp_path / "ending.py"
    failing.write_text("def f(completions): ...\nraise ValueError('no luck')\n")
    ending.write_text("import os\ndef f(completions): ...\nos._exit(1)\n")
    with pytest.raises(ConfigError, match="no luck"):
        WorkerPool([f"{failing}:f"]).start()
    with pytest.raises(EnvironmentProblem, match="died"):
        WorkerPool([f"{ending}:f"]).start()


def test_workers_end_with_the_pool(pool_of, own):
    pool = pool_of("mine")
    pool.run(tasks("mine", ["a", "b"], own))
    pids = [worker.process.pid for worker in pool._workers]
    pool.close()
    time.sleep(0.05)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_call_that_blocks_the_loop_does_not_take_its_neighbours_with_it(own, tmp_path):
    pool = WorkerPool([f"{own}:blocks"], timeout=2.0)
    try:
        texts = ["fine", "hang", *["fine"] * 5]
        outcomes = pool.run([Task("blocks", {"completions": [text], "folder": [str(tmp_path)]}) for text in texts])
    finally:
        pool.close()
    assert [outcome.score for outcome in outcomes] == [None if text == "hang" else 1.0 for text in texts]
    assert outcomes[1].failure == "timeout"


def test_what_is_asked_later_does_not_wait_for_all_that_was_asked_before(pool_of, own):
    pool = pool_of("mine", workers=2, timeout=1.5)
    hanging = pool.submit(*tasks("mine", ["hang"], own))
    answers = [pool.submit(task) for task in tasks("mine", ["a", "bb", "ccc"], own)]
    assert [answer.result(timeout=60).score for answer in answers] == [1.0, 2.0, 3.0] and not hanging.done()
    assert hanging.result(timeout=60).failure == "timeout"


def test_tasks_of_many_threads_that_end_before_their_answers(pool_of, own):
    pool, answers = pool_of("mine", workers=1), dict[str, Future]()
    texts = ["a" * n for n in range(1, 9)]
    for text in texts:
        asking = threading.Thread(
            target=lambda text=text: answers.update({text: pool.submit(*tasks("mine", [text], own))})
        )
        asking.start()
        asking.join()
    assert [answers[text].result(timeout=60).score for text in texts] == list(range(1, 9))
    assert len(pool._workers) == 1


def test_closing_while_something_runs(pool_of, own):
    pool = pool_of("mine", workers=1)
    answers = [pool.submit(task) for task in tasks("mine", ["hang", "a"], own)]
    while not (pid := Path(own).parent / "hanging").exists() or not pid.read_text():
        time.sleep(0.01)
    pool.close()
    late = pool.submit(*tasks("mine", ["a"], own))
    for answer in [*answers, late]:
        assert isinstance(answer.exception(timeout=0), CancelledError)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_what_is_cancelled_in_time_is_not_computed(pool_of, own):
    pool = pool_of("mine", workers=1, timeout=0.5)
    hanging, unwanted, wanted = (pool.submit(task) for task in tasks("mine", ["hang", "once", "a"], own))
    assert unwanted.cancel()
    assert wanted.result(timeout=60).score == 1.0 and hanging.result().failure == "timeout"
    assert not (Path(own).parent / "again").exists()


def test_a_worker_that_died_while_it_had_nothing_to_do_costs_nothing(pool_of, own):
    pool = pool_of("mine", workers=1)
    pool.start()
    first = pool._workers[0].process
    os.killpg(first.pid, signal.SIGKILL)
    while pool._workers:
        time.sleep(0.01)
    assert pool.run(tasks("mine", ["a"], own))[0].score == 1.0


def test_functions_that_cannot_be_loaded_again_end_who_waits(tmp_path):
    (tmp_path / "fickle.py").write_text(FICKLE)
    pool = WorkerPool([f"{tmp_path}/fickle.py:f"], workers=1)
    try:
        dying, waiting = (pool.submit(Task("f", {"completions": [text]})) for text in ("die", "a"))
        assert dying.result(timeout=60).failure == "killed"
        assert isinstance(waiting.exception(timeout=60), ConfigError)
        (tmp_path / "loaded").unlink()
        assert pool.run([Task("f", {"completions": ["a"]})])[0].score == 1.0
    finally:
        pool.close()


LEAKS = """
import os
from urllib.parse import quote

def leaks(completions, prompts):
    key = os.environ["MINE"]
    print("printed", key, flush=True)
    raise LookupError(f"https://host/?key={quote(key, safe='')} {key!r} {completions[0]}")
"""


def test_a_secret_is_in_no_failure_and_no_log(tmp_path: Path, monkeypatch, capfd) -> None:
    (tmp_path / "leaks.py").write_text(LEAKS)
    monkeypatch.setenv("MINE", "hush/0123456\r\n")
    monkeypatch.setenv("GRPO_HPC_SECRETS", "OTHER MINE")
    pool = WorkerPool([f"{tmp_path}/leaks.py:leaks"], timeout=10.0)
    try:
        (outcome,) = pool.run([Task("leaks", {"completions": ["one"], "prompts": [[]]})])
    finally:
        pool.close()
    assert outcome.text == "LookupError: https://host/?key=(secret)%0D%0A '(secret)\\r\\n' one"
    printed = "".join(capfd.readouterr())
    assert "printed (secret)" in printed and "hush" not in printed


def test_a_file_that_says_a_secret_when_it_is_loaded(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "leaks.py").write_text("import os\ndef f(completions): ...\nraise ValueError(os.environ['MY_TOKEN'])\n")
    monkeypatch.setenv("MY_TOKEN", "hush-0123456")
    with pytest.raises(ConfigError, match=r"ValueError: \(secret\)"):
        WorkerPool([f"{tmp_path}/leaks.py:f"]).start()
