from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from grpo_hpc.runs.crash import find_crash


def trace(message: str, depth: int = 1) -> str:
    frames = '  File "a.py", line 1, in f\n    f()\n' * depth
    return f"chatter\nTraceback (most recent call last):\n{frames}{message}\nafter\n"


def write(folder: Path, launcher: str, *ranks: str) -> tuple[Path, list[Path]]:
    (folder / "launcher.log").write_text(launcher)
    logs = [folder / f"rank_{index}.log" for index in range(len(ranks))]
    for log, text in zip(logs, ranks, strict=True):
        log.write_text(text)
    return folder / "launcher.log", logs


ROOT_CAUSE = "Root Cause (first observed failure):\n[0]:\n  time      : now\n  rank      : 1 (local_rank: 1)\n"


def test_the_rank_that_torchrun_names_comes_first(tmp_path: Path) -> None:
    crash = find_crash(*write(tmp_path, ROOT_CAUSE, trace("RuntimeError: peer lost"), trace("KeyError: 'x'")))
    assert crash.log.name == "rank_1.log"
    assert "KeyError: 'x'" in crash.lines
    assert crash.lines[0].startswith("Traceback")


def test_without_a_name_the_first_traceback_is_shown(tmp_path: Path) -> None:
    crash = find_crash(*write(tmp_path, "", "fine\n", trace("KeyError: 'x'")))
    assert crash.log.name == "rank_1.log"


def test_a_rank_killed_without_traceback_shows_its_last_lines(tmp_path: Path) -> None:
    crash = find_crash(*write(tmp_path, ROOT_CAUSE, "a\n", "b\nlast words\n"))
    assert (crash.log.name, crash.lines) == ("rank_1.log", ["b", "last words"])


def test_nothing_in_the_rank_logs_shows_the_launcher_log(tmp_path: Path) -> None:
    crash = find_crash(*write(tmp_path, trace("ModuleNotFoundError: torch"), "", ""))
    assert crash.log.name == "launcher.log"
    assert "ModuleNotFoundError: torch" in crash.lines


def test_long_tracebacks_keep_both_ends(tmp_path: Path) -> None:
    crash = find_crash(*write(tmp_path, "", trace("KeyError: 'x'", depth=100)))
    assert len(crash.lines) <= 41
    assert crash.lines[0].startswith("Traceback")
    assert "KeyError: 'x'" in crash.lines
    assert any("lines left out" in line for line in crash.lines)


def test_missing_logs_give_an_empty_excerpt(tmp_path: Path) -> None:
    assert find_crash(tmp_path / "launcher.log", [tmp_path / "rank_0.log"]).lines == []


def test_of_several_nodes_the_rank_that_did_not_lose_a_peer_counts(tmp_path: Path) -> None:
    both = ROOT_CAUSE.replace("rank      : 1", "rank      : 0") + ROOT_CAUSE.replace("rank      : 1", "rank      : 2")
    lost = trace("RuntimeError: [../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    crash = find_crash(*write(tmp_path, both, lost, lost, trace("KeyError: 'x'"), lost))
    assert crash.log.name == "rank_2.log"
    assert find_crash(*write(tmp_path, both, lost, lost, lost)).log.name == "rank_0.log"
    assert find_crash(*write(tmp_path, both, lost, trace("KeyError: 'x'"), lost)).log.name == "rank_1.log"


def test_a_killed_rank_that_is_not_the_first_of_its_node_counts(tmp_path: Path) -> None:
    block = "  rank      : {} (local_rank: {})\n  exitcode  : {} (pid: 7)\n"
    launcher = "Failures:\n[1]:\n" + block.format(3, 1, "-9") + "Root Cause (first observed failure):\n[0]:\n"
    crash = find_crash(*write(tmp_path, launcher + block.format(2, 0, 1), trace("KeyError: 'x'")))
    assert crash.cause == "rank 3 was killed by signal 9 (SIGKILL)"


def test_a_killed_rank_comes_before_those_that_lost_it(tmp_path: Path) -> None:
    head = "Root Cause (first observed failure):\n[0]:\n"
    blocks = "".join(
        f"{head}  rank      : {rank} (local_rank: 0)\n  exitcode  : {code} (pid: 7)\n"
        for rank, code in ((0, 1), (1, -9))
    )
    crash = find_crash(*write(tmp_path, blocks, trace("RuntimeError: peer lost"), ""))
    assert (crash.log.name, crash.cause) == ("rank_1.log", "rank 1 was killed by signal 9 (SIGKILL)")


def test_a_node_that_srun_says_was_killed_comes_before_those_that_lost_it(tmp_path: Path) -> None:
    """torchrun itself was killed there, so nobody says which rank it was; srun kills the other tasks afterwards."""
    launcher = "srun: error: node2: task 1: Killed\nsrun: Terminating StepId=7.0\nsrun: error: node1: task 0: {}\n"
    lost = trace("RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    crash = find_crash(*write(tmp_path, launcher.format("Killed"), lost, ""))
    assert crash.cause == "what starts the ranks on node2 was ended by a signal: Killed"
    for code, cause in ((137, "what starts the ranks on node2 was killed by signal 9 (SIGKILL)"), (1, ""), (143, "")):
        other = launcher.replace("task 1: Killed", f"task 1: Exited with exit code {code}").format("Killed")
        assert find_crash(*write(tmp_path, other, trace("KeyError: 'x'"), "")).cause == cause


def test_a_worker_that_vllm_lost_comes_before_what_its_engine_says(tmp_path: Path) -> None:
    said = (
        "ERROR [multiproc_executor.py:315] Worker proc VllmWorker-1 died unexpectedly (exit code: {}), shutting down.\n"
    )
    for code, how in (("-9", "was killed by signal 9 (SIGKILL)"), ("3", "ended with exit code 3")):
        log, _ = write(tmp_path, said.format(code) + trace("EngineDeadError: EngineCore encountered an issue."))
        assert find_crash(log, []).cause == f"vLLM's worker VllmWorker-1 {how}"


def test_only_the_ends_of_long_logs_are_read(tmp_path: Path) -> None:
    """Of 2 GB, most of which are a hole: memory and seconds would tell."""
    launcher, (first, second) = write(tmp_path, ROOT_CAUSE, "", "")
    for log in (first, second):
        with log.open("wb") as file:
            file.write(b"beginning\n")
            file.seek(2**31)
            file.write(b"\n" + trace("KeyError: 'x'").encode())
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\n"
    limited += "import sys; from pathlib import Path; from grpo_hpc.runs.crash import find_crash\n"
    limited += "found = find_crash(*map(Path, sys.argv[1:2]), [*map(Path, sys.argv[2:])])\nprint(found.lines)"
    command = [sys.executable, "-c", limited, *map(str, (launcher, first, second))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "KeyError: 'x'" in done.stdout, done.stderr
