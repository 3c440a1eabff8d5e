"""A stand-in for the trainer, started by torchrun on every rank: it steps, saves, obeys and misbehaves as it is told.

Its ranks stay together without torch, whose import takes longer than all they do; ``test_trainer.py`` has the trainer.
``payload.json`` in the run directory: ``steps``, seconds per step ``pause`` in the first ``slow`` attempts (1) and
hardly any in the others, ``save_at``, a step that is saved, ``deaf``, an attempt that does not obey the wish to stop,
and ``fault``, such as ``{"attempt": "attempt_1", "step": 2, "rank": 3, "kind": "kill"}``.
"""

from __future__ import annotations

import getpass
import json
import os
import signal
import sys
import time
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from urllib.request import Request, urlopen

from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.redaction import redacted
from grpo_hpc.runs.attempt_hold import Hold
from grpo_hpc.runs.attempts import saved_step
from grpo_hpc.runs.rank_log import redirect_output
from grpo_hpc.runs.run_dir import RunDir

USUAL = {"attempt": "attempt_1", "step": 1, "rank": 0}


def main(run: RunDir) -> int:
    told = json.loads((run.path / "payload.json").read_text())
    rank, attempt = int(os.environ["RANK"]), run.latest_attempt()
    redirect_output(RunDir.rank_log(attempt, rank))
    signalled: list[int] = []
    hears = told.get("deaf") != attempt.name  # to the wish to stop
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *got: signalled.append(got[0]))
    together = Together(attempt / "meeting", rank, int(os.environ["WORLD_SIZE"]))
    events, sinks = EventLog(run.events), MetricSinks(run.metrics)
    (attempt / f"where_{rank}.json").write_text(json.dumps(where(run)))
    step, slow = saved_step(run), int(attempt.name.removeprefix("attempt_")) <= told.get("slow", 1)
    pause = told["pause"] if slow else 0.02
    hold = Hold.here(run)
    if rank == 0:
        look_at_servers(run, attempt)
    while step < told["steps"]:
        if rank == 0:
            if hold:
                hold.require()
            ask_servers(attempt, told.get("asks", "/v1/completions"), told.get("keeps_on", False))
        misbehave(told.get("fault", {}), attempt.name, step, rank)
        if together.any(hears and (bool(signalled) or run.stop.exists())):
            save(run, step, rank, together)
            if rank == 0:
                events.stopped(step)
            return 0
        time.sleep(pause)
        step += 1
        if rank == 0:
            print(f"step {step}", flush=True)
            metrics = {"time/step": pause, "reward/mean": step / told["steps"]}
            sinks.log(step, metrics)
            events.metrics(step, metrics)
            with (run.path / "steps.txt").open("a") as file:
                file.write(f"{attempt.name} {step}\n")
        if step == told.get("save_at"):
            save(run, step, rank, together)
    save(run, step, rank, together)
    if rank == 0:
        events.finished({"lines": []})
    return 0


def where(run: RunDir) -> dict[str, object]:
    """What a rank finds around it."""
    names = ("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES", "MASTER_PORT", "SECRET")
    caches = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME")
    try:
        import only_on_the_host  # noqa: F401
    except ImportError:
        packages_of_the_host = False
    else:
        packages_of_the_host = True
    return {
        **{name: os.environ.get(name) for name in names},
        "redacted": redacted(f"no key {os.environ.get('SECRET')!r}"),
        "contained": not Path("/usr/sbin/slurmd").exists(),
        "user": getpass.getuser(),
        "home": str(Path.home()),
        "home_is_kept": os.access(Path.home(), os.W_OK) and Path.home() == Path(os.environ.get("GRPO_HPC_HOME", "/")),
        "caches": {name: os.environ[name] for name in caches if name in os.environ},
        "packages_of_the_host": packages_of_the_host,
        "model": json.loads((Path(run.config().model.path) / "config.json").read_text())["model_type"],
    }


class Together:
    """Keeps ranks in step, as collectives do: one that dies ends the others, one that hangs holds them.

    Args:
        place: file that tells where rank 0 waits for the others; all nodes of the test cluster are this machine.
    """

    def __init__(self, place: Path, rank: int, world: int) -> None:
        self._leads = rank == 0
        if self._leads:
            with Listener(("127.0.0.1", 0), backlog=world) as listener:
                new = place.with_suffix(".new")
                new.write_text(str(listener.address[1]))
                new.rename(place)
                self._others: list[Connection] = [listener.accept() for _ in range(world - 1)]
        else:
            while not place.exists():
                time.sleep(0.02)
            self._others = [Client(("127.0.0.1", int(place.read_text())))]

    def any(self, here: bool) -> bool:
        """Whether it is true on any rank."""
        try:
            if self._leads:
                here = any([here, *(other.recv_bytes() == b"yes" for other in self._others)])
            for other in self._others:
                other.send_bytes(b"yes" if here else b"no")
            return here if self._leads else self._others[0].recv_bytes() == b"yes"
        except EOFError:
            raise ConnectionError("connection closed by peer") from None


def ask_servers(attempt: Path, path: str, keeps_on: bool) -> None:
    """One request to each server, as a trainer would sample from all of them; ``keeps_on`` when one is dead."""
    if not RunDir.servers_file(attempt).exists():
        return
    key = RunDir.api_key(attempt).read_text()
    for server in json.loads(RunDir.servers_file(attempt).read_text())["servers"]:
        request = Request(server["url"] + path, headers={"Authorization": f"Bearer {key}"})
        try:
            with urlopen(request, timeout=10) as answer, (attempt / "served.txt").open("a") as file:
                file.write(f"{server['url']} {answer.read().decode()}\n")
        except OSError:
            if not keeps_on:
                raise


def look_at_servers(run: RunDir, attempt: Path) -> None:
    """What a trainer can see of the servers' key: its mode, and whether a command line or a file tells it."""
    if not RunDir.servers_file(attempt).exists():
        return
    key = RunDir.api_key(attempt)
    files = [path for path in run.path.rglob("*") if path.is_file() and path != key]
    told = [*files, *Path("/proc").glob("[0-9]*/cmdline")]
    seen = {"mode": oct(key.stat().st_mode & 0o777), "told": [str(path) for path in told if _tells(path, key)]}
    (attempt / "key_seen.json").write_text(json.dumps(seen))


def _tells(path: Path, key: Path) -> bool:
    try:
        return key.read_bytes() in path.read_bytes()
    except OSError:  # a process that ended meanwhile
        return False


def save(run: RunDir, step: int, rank: int, together: Together) -> None:
    if rank == 0:
        checkpoint = run.checkpoints / f"step_{step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "manifest.json").write_text('{"files": {}}')
    together.any(False)


def misbehave(fault: dict, attempt: str, step: int, rank: int) -> None:
    here = {"attempt": attempt, "step": step, "rank": rank}
    if not fault or any(fault.get(key, usual) not in (None, here[key]) for key, usual in USUAL.items()):
        return
    if fault["kind"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault["kind"] == "mistake":
        EventLog(RunDir.open(sys.argv[1]).events).error("ConfigError", "the payload was told wrong things", "")
        sys.exit(2)
    if fault["kind"] == "raise":
        raise RuntimeError("the payload was told to fail")
    if fault["kind"] == "hang":
        while True:  # a signal ends the sleep, not the loop
            time.sleep(60)
    if fault["kind"] == "eat":
        eaten = []
        while True:
            eaten.append(b"x" * (1 << 27))
            time.sleep(0.2)
    if fault["kind"] == "fill":
        with Path(fault["file"]).open("wb") as file:
            while True:
                file.write(bytes(1 << 20))


if __name__ == "__main__":
    sys.exit(main(RunDir.open(sys.argv[1])))
