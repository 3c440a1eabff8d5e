"""The launcher with a stand-in for the trainer: a short script that reports events as the trainer does."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_hpc.config import load_run
from grpo_hpc.jobs.local import run_local
from grpo_hpc.jobs.prepare import create_run
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.run_dir import RunDir

RUN = """
name: small
model: {path: m, dtype: float32}
data: {train: t.jsonl}
resources: {device: cpu, nproc_per_node: 2}
batch: {train_iters: 4}
rewards: {reward_funcs: [exact_number]}
"""
PROLOGUE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from grpo_hpc.runs.rank_log import redirect_output
from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.observe.events import EventLog
run = RunDir.open(sys.argv[1])
log = EventLog(run.events)
note = lambda name, text="": (run.path / name).write_text(str(text))
"""
LAUNCHER = """
import sys
from grpo_hpc.jobs.local import run_local
from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.run_dir import RunDir
sys.exit(run_local(RunDir.open(sys.argv[1]), [sys.executable, *sys.argv[2:]]))
"""

StandIn = Callable[[str], list[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    root = str(Path(__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    cfg = load_run("run.yaml")
    return create_run(cfg, make_plan(cfg))


@pytest.fixture
def stand_in(run: RunDir, tmp_path: Path) -> StandIn:
    def write(body: str) -> list[str]:
        script = tmp_path / "stand_in.py"
        script.write_text(PROLOGUE + body)
        return [sys.executable, str(script), str(run.path)]

    return write


def launch(run: RunDir, command: list[str]) -> subprocess.Popen[str]:
    """The launcher in a process of its own, so that it can be given signals."""
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(run.path), *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_script_shares_the_cores_among_the_ranks(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> str:
        shown = subprocess.run(["bash", run.job_script, "environment"], capture_output=True, text=True, check=True)
        return dict(entry.partition("=")[::2] for entry in shown.stdout.split("\0"))["OMP_NUM_THREADS"]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads() == str(max(1, len(os.sched_getaffinity(0)) // 2))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == "3"


def test_finished_run_gives_0(run: RunDir, stand_in: StandIn) -> None:
    run.stop.touch()  # left over from an earlier stop
    assert run_local(run, stand_in("log.finished({'lines': ['the end']})")) == 0
    assert not run.stop.exists()
    assert run.latest_attempt().name == "attempt_1"


def test_user_error_gives_2_and_shows_message_and_hint(
    run: RunDir, stand_in: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    code = run_local(run, stand_in("log.error('RewardError', 'no [b]answer[/b]', 'Add it.'); raise SystemExit(1)"))
    out = capfd.readouterr().err
    assert code == 2
    assert "RewardError: no [b]answer[/b]" in out
    assert "Add it." in out
    assert "Traceback" not in out


def test_the_first_of_several_errors_is_shown(
    run: RunDir, stand_in: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "log.error('RewardError', 'cause', ''); log.error('RolloutError', 'effect', ''); raise SystemExit(1)"
    assert run_local(run, stand_in(body)) == 2
    out = capfd.readouterr().err
    assert "RewardError: cause" in out
    assert "effect" not in out


def test_errors_of_an_earlier_attempt_do_not_count(run: RunDir, stand_in: StandIn) -> None:
    assert run_local(run, stand_in("log.error('RewardError', 'a', 'b'); raise SystemExit(1)")) == 2
    assert run_local(run, stand_in("log.finished({'lines': []})")) == 0
    assert run.latest_attempt().name == "attempt_2"


def test_crash_gives_1_and_shows_the_traceback_of_the_rank(
    run: RunDir, stand_in: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "redirect_output(run.rank_log(run.latest_attempt(), 1)); print('chat' + 'ter', flush=True); 1 / 0"
    assert run_local(run, stand_in(body)) == 1
    out = capfd.readouterr().err
    assert "ZeroDivisionError: division by zero" in out
    assert "rank_1.log" in out
    assert "chatter" not in out


def test_crash_before_the_rank_log_is_open_shows_the_launcher_log(
    run: RunDir, stand_in: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_local(run, stand_in("import no_such_module")) == 1
    out = capfd.readouterr().err
    assert "No module named 'no_such_module'" in out
    assert "launcher.log" in out


def test_an_end_without_a_word_is_a_crash(run: RunDir, stand_in: StandIn, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_local(run, stand_in("pass")) == 1
    assert "without saying that it finished" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_to_save_and_stop(run: RunDir, stand_in: StandIn, number: signal.Signals) -> None:
    body = """
note('ready')
while not run.stop.exists(): time.sleep(0.02)
log.stopped(3)
"""
    launcher = launch(run, stand_in(body))
    wait_for((run.path / "ready").exists)
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0
    assert "press Ctrl-C again to kill" in out
    assert "Stopped after step 3" in out
    assert f"grpo-hpc resume {run.path}" in out


def test_second_signal_kills_ranks_in_sessions_of_their_own(run: RunDir, stand_in: StandIn) -> None:
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)
note('pids.tmp', f'{os.getpid()} {child.pid}')
(run.path / 'pids.tmp').rename(run.path / 'pids')
time.sleep(60)
"""
    launcher = launch(run, stand_in(body))
    wait_for((run.path / "pids").exists)
    pids = [int(pid) for pid in (run.path / "pids").read_text().split()]
    assert all(runs(pid) for pid in pids)
    launcher.send_signal(signal.SIGINT)
    wait_for(run.stop.exists)
    launcher.send_signal(signal.SIGINT)
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert "Killed." in out
    assert not any(runs(pid) for pid in pids)


def test_orphans_of_a_crashed_trainer_are_ended(run: RunDir, stand_in: StandIn) -> None:
    body = """
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)
note('pid', child.pid)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_local(run, stand_in(body)) == 1
    assert not runs(int((run.path / "pid").read_text()))


def test_the_trainer_does_not_outlive_a_killed_launcher(run: RunDir, stand_in: StandIn) -> None:
    body = "note('pid.tmp', os.getpid()); (run.path / 'pid.tmp').rename(run.path / 'pid'); time.sleep(60)"
    launcher = launch(run, stand_in(body))
    wait_for((run.path / "pid").exists)
    pid = int((run.path / "pid").read_text())
    launcher.kill()
    launcher.communicate(timeout=60)
    wait_for(lambda: not runs(pid))


def test_a_terminal_that_goes_away_makes_the_run_save_and_stop(run: RunDir, stand_in: StandIn) -> None:
    """The launcher's own terminal, as ssh gives one; the second signal is the shell's, and must not kill."""
    body = """
note('ready')
while not run.stop.exists(): time.sleep(0.02)
time.sleep(0.5)
log.stopped(3)
"""
    ours, its = pty.openpty()
    command = [sys.executable, "-c", LAUNCHER, str(run.path), *stand_in(body)[1:]]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # or it would ignore it where nohup has begun the tests
    launcher = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True)
    signal.signal(signal.SIGHUP, before)
    os.close(its)
    wait_for((run.path / "ready").exists)
    os.close(ours)
    launcher.send_signal(signal.SIGHUP)
    wait_for(run.stop.exists)
    launcher.send_signal(signal.SIGHUP)
    assert launcher.wait(20) == 0
    (attempt,) = history(run)
    assert (attempt.state, attempt.reason) == ("stopped", "saved and stopped after step 3")


def test_nohup_is_obeyed(run: RunDir, stand_in: StandIn) -> None:
    body = "note('ready'); time.sleep(0.5); log.finished({'lines': []})"
    command = ["nohup", sys.executable, "-c", LAUNCHER, str(run.path), *stand_in(body)[1:]]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for((run.path / "ready").exists)
    launcher.send_signal(signal.SIGHUP)
    assert launcher.wait(20) == 0
    assert history(run)[0].state == "success"
