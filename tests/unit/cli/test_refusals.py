"""What the system refuses is told in one line at one door, whatever command it meets: every command, every refusal."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pkgutil
import resource
import shutil
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from grpo_hpc.cli import main
from grpo_hpc.config import load_run
from grpo_hpc.jobs.prepare import create_run
from grpo_hpc.observe.completions import CompletionLog, member
from grpo_hpc.plan.make import make_plan

ROOT = Path(__file__).parents[3]
RUN = """
name: small
output_dir: runs
model: {path: model, dtype: float32}
data: {train: t.jsonl}
resources: {device: cpu}
batch: {train_iters: 4}
rewards: {reward_funcs: [exact_number]}
"""
# a command, what it reads and what it writes; WORLD is the folder that has all of it
READERS = {
    "plan": ("plan run.yaml", "run.yaml"),
    "plan model": ("plan run.yaml", "model/config.json"),
    "plan folder": ("plan run.yaml", "model"),
    "plan hardware": ("plan run.yaml --json", "run.yaml"),
    "submit": ("submit run.yaml --dry-run name=other", "run.yaml"),
    "submit model": ("submit run.yaml --dry-run name=other", "model"),
    "sweep": ("submit run.yaml --dry-run name=other --sweep optimizer.lr=1,2", "run.yaml"),
    "resume": ("resume runs/small", "runs/small"),
    "resume file": ("resume runs/small", "runs/small/run.yaml"),
    "resume profile": ("resume runs/small", "runs/small/cluster.yaml"),
    "cancel": ("cancel runs/small", "runs/small/run.yaml"),
    "status": ("status runs/small", "runs/small"),
    "status file": ("status runs/small --json", "runs/small/job.json"),
    "status folder": ("status", "runs"),
    "list": ("list runs", "runs"),
    "clean": ("clean runs", "runs"),
    "clean run": ("clean runs/small", "runs/small/run.yaml"),
    "view": ("view runs", "runs"),
    "logs": ("logs runs/small", "runs/small"),
    "logs log": ("logs runs/small", "runs/small/attempt_1/rank_0.log"),
    "logs attempt": ("logs runs/small", "runs/small/attempt_1"),
    "report": ("report runs/small", "runs/small/run.yaml"),
    "report environment": ("report runs/small", "runs/small/lock.json"),
    "compare": ("compare runs/small runs/small", "runs/small/run.yaml"),
    "completions": ("completions runs/small", "runs/small/completions"),
    "cluster list": ("cluster list", "profiles/own.yaml"),
    "cluster list folder": ("cluster list", "profiles"),
    "import": ("import-swift script.sh", "script.sh"),
    "image": ("image render cpu --versions versions.yaml", "versions.yaml"),
    "inspect": ("checkpoint inspect model", "model/model.safetensors"),
    "inspect folder": ("checkpoint inspect model", "model"),
    "verify": ("checkpoint verify model", "model/model.safetensors"),
    "convert": ("checkpoint convert model new/megatron --workers 1", "model/model.safetensors"),
    "convert config": ("checkpoint convert model new/megatron --workers 1", "model/config.json"),
    "reshard": ("checkpoint reshard model new/megatron", "model"),
    "merge": ("checkpoint merge-lora model model new/merged", "model"),
    "extract": ("checkpoint extract-lora model model new/adapter", "model"),
}
WRITERS = {
    "plan html": "plan run.yaml --html new/plan.html",
    "report": "report runs/small -o new/page.html",
    "report completions": "report runs/small -o new/page.html --all-completions",
    "plan search": "plan gpu.yaml --search --write new/best.yaml",
    "submit": "submit run.yaml --dry-run output_dir=new",
    "sweep": "submit run.yaml --dry-run output_dir=new --sweep optimizer.lr=1,2",
    "cluster add": "cluster add mine --yes --executor local --runtime none",
    "import": "import-swift script.sh -o new/run.yaml",
    "config": "config copy quickstart new/run.yaml",
    "image": "image render cpu --write new",
    "convert": "checkpoint convert model new/megatron --workers 1",
}
SILENT = ("cluster list", "report environment")
"""Readers to which what cannot be read is one thing among others, which they name."""


WORKING = {
    "plan": "plan run.yaml",
    "plan json": "plan run.yaml --json",
    "plan html": "plan run.yaml --html new/plan.html",
    "submit": "submit run.yaml --dry-run output_dir=new",
    "status": "status runs/small",
    "status json": "status --json",
    "list": "list runs",
    "logs": "logs runs/small",
    "report": "report runs/small -o new/page.html",
    "completions": "completions runs/small",
    "cancel": "cancel runs/small",
    "cluster list": "cluster list",
    "cluster add": "cluster add mine --yes --executor local --runtime none",
    "losses": "train --list losses",
    "config list": "config list",
    "config keys": "config keys optimizer",
    "cluster keys": "cluster keys",
    "clean": "clean runs",
    "config copy": "config copy quickstart new/run.yaml",
    "import": "import-swift script.sh -o new/run.yaml",
    "image": "image render cpu",
    "inspect": "checkpoint inspect model",
    "convert": "checkpoint convert model new/megatron --workers 1",
    "verify": "checkpoint verify model model --workers 1",
    "help": "--help",
}
INCOMPLETE = {"import": 1}  # the exit code of what works


@dataclass
class Told:
    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        assert self.code == 2, self
        assert "Traceback" not in self.err and self.err.lower().count("error: ") == 1, self.err
        assert all(word in self.err for word in words), self.err


def told(
    command: str, before: Callable[[], None] = lambda: None, out: int | None = None, encoding: str = "utf-8"
) -> Told:
    """The command line in a child of this process, with descriptors of its own as a shell gives them.

    Args:
        before: done in the child first.
        out: the child's standard output; None: what it writes is read.
    """
    output, err = pipe(), pipe()
    if (child := os.fork()) == 0:
        try:
            os._exit(_as_program(command, before, output[1] if out is None else out, err[1], encoding))
        finally:
            os._exit(99)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Told(code, read(output).decode(encoding), read(err).decode(errors="replace"))


def pipe() -> tuple[int, int]:
    """One that takes what a command says while nobody reads."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 2**20)
    return ends


def read(ends: tuple[int, int]) -> bytes:
    os.close(ends[1])
    with os.fdopen(ends[0], "rb") as file:
        return file.read()


def _as_program(command: str, before: Callable[[], None], out: int, err: int, encoding: str) -> int:
    try:
        for name, descriptor, given in (("stdout", 1, out), ("stderr", 2, err)):
            os.dup2(given, descriptor)
            stream = open(descriptor, "w", encoding=encoding, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        before()
        main(command.split(" "))
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="replace"))
    return 99


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What commands import lazily, so that a child need not."""
    for name in (
        "cli",
        "cli.looking",
        "runs",
        "report",
        "report.live",
        "checkpoint",
        "importing",
        "images",
        "plan",
        "jobs.checks",
    ):
        package = import_module(f"grpo_hpc.{name}")
        for module in pkgutil.iter_modules(package.__path__):
            if module.name not in ("__main__", "logits", "check_rank"):
                import_module(f"grpo_hpc.{name}.{module.name}")
    for name in ("rich.table", "rich.tree", "rich.live", "rich.traceback", "multiprocessing", "colorsys"):
        import_module(name)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with everything that commands read."""
    return tmp_path_factory.mktemp("world")


@pytest.fixture
def here(world, tmp_path, monkeypatch, tiny_model):
    """A copy of it, as the working directory."""
    folder = tmp_path / "here"
    monkeypatch.setenv("GRPO_HPC_PROFILES", str(folder / "profiles"))
    monkeypatch.setenv("PATH", str(folder))
    if not any(world.iterdir()):
        monkeypatch.chdir(world)
        _make(tiny_model)
    shutil.copytree(world, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def _make(tiny_model: Callable[[Path], Path]) -> None:
    tiny_model(Path("model"))
    for name in ("profiles", "new"):
        Path(name).mkdir()
    Path("profiles/own.yaml").write_text("executor: local\nruntime: none\n")
    Path("t.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    Path("run.yaml").write_text(RUN)
    Path("gpu.yaml").write_text(RUN.replace("cpu", "cuda").replace("t.jsonl", "t.jsonl, max_length: 64"))
    Path("script.sh").write_text("megatron rlhf --rlhf_type grpo --model model --dataset t.jsonl\n")
    shutil.copy(ROOT / "containers" / "versions.yaml", "versions.yaml")
    cfg = load_run("run.yaml")
    run = create_run(cfg, make_plan(cfg))
    attempt = run.new_attempt()
    (attempt / "rank_0.log").write_text("hello\n")
    record = {"number": 1, "submission": 1, "executor": "local", "job_id": None, "restart": 0, "nodes": ["n"]}
    record |= {"started": 1.0, "first_step": 0, "state": "stopped", "reason": "asked", "ended": 2.0}
    (attempt / "attempt.json").write_text(json.dumps(record))
    CompletionLog(run.completions).write(1, [member([{"messages": [], "completion": "4"}])])
    run.job_file.write_text('{"submissions": [{"number": 1, "executor": "local", "job_ids": [], "at": 1.0}]}')


def without_privileges() -> None:
    """Permissions bind everybody but root, and root as well where it has given up its capabilities (capset(2))."""
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0


@pytest.mark.parametrize("name", READERS)
def test_what_may_not_be_read(name, here):
    command, place = READERS[name]
    Path(place).chmod(0)
    said = told(command, without_privileges)
    Path(place).chmod(0o755)
    if name in SILENT:
        assert said.code == 0 and place in (said.out + said.err).replace("\n", ""), said
    else:
        said.refused(place)
        assert "permission denied" in said.err.lower() or "not readable" in said.err


@pytest.mark.parametrize("name", WRITERS)
def test_where_nothing_may_be_written(name, here):
    place = Path("profiles" if name == "cluster add" else "new")
    place.chmod(0o555)
    told(WRITERS[name], without_privileges).refused(str(place), "ermission denied")


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_nothing_half_written(name, here):
    """No file may grow (RLIMIT_FSIZE), which is told as a full disk is: by the write."""
    before = {path for path in here.rglob("*") if path.is_file()}
    told(WRITERS[name], lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))).refused("ile too large")
    left = {path for path in here.rglob("*") if path.is_file()} - before
    assert all(".partial/" in str(path) for path in left), left


@pytest.mark.parametrize("name", WORKING)
def test_a_reader_that_has_gone(name, here):
    ends = os.pipe()
    os.close(ends[0])
    said = told(WORKING[name], out=ends[1])
    assert (said.code, said.err.count("rror")) == (INCOMPLETE.get(name, 0), 0), said


@pytest.mark.parametrize("name", WORKING)
def test_closed_streams(name, here):
    def close() -> None:
        for descriptor, stream in enumerate(("stdin", "stdout", "stderr")):
            os.close(descriptor)
            setattr(sys, stream, None)
            setattr(sys, f"__{stream}__", None)

    before = set(here.rglob("*"))
    assert told(WORKING[name], close).code == INCOMPLETE.get(name, 0)
    made = [path for path in set(here.rglob("*")) - before if path.is_file() and "megatron" not in str(path)]
    assert not any(b"error: " in path.read_bytes() for path in made), "nothing is printed into a file"


@pytest.mark.parametrize("name", WORKING)
def test_an_output_that_is_full(name, here):
    full = os.open("/dev/full", os.O_WRONLY)
    said = told(WORKING[name], out=full)
    os.close(full)
    if said.code != INCOMPLETE.get(name, 0) or "error" in said.err:
        said.refused("standard output: no space left on device") if name != "import" else None
    if "new/" in WORKING[name]:
        assert any(Path("new").iterdir()), "the command did its work"


@pytest.mark.parametrize("name", WORKING)
def test_a_terminal_that_is_not_utf8(name, here):
    Path("run.yaml").write_text(RUN.replace("name: small", "name: small  # 模型 — ×"))
    said = told(WORKING[name], encoding="latin-1")
    assert said.code == INCOMPLETE.get(name, 0), said
    assert said.out


@pytest.mark.parametrize("name", WORKING)
def test_a_working_directory_that_was_deleted(name, here):
    def leave() -> None:
        Path("gone").mkdir()
        os.chdir("gone")
        Path("../gone").rmdir()

    said = told(WORKING[name], leave)
    if said.code:
        said.refused()


@pytest.mark.parametrize("name", READERS)
def test_a_name_that_is_too_long(name, here):
    command = READERS[name][0]
    word = next((word for word in command.split(" ")[1:] if Path(word).exists()), None)
    said = told(command.replace(word, "x" * 300, 1) if word else "list " + "x" * 300)
    said.refused("xxx")


@pytest.mark.parametrize("name", WRITERS)
def test_a_target_whose_name_is_too_long(name, here):
    command = WRITERS[name]
    said = told(
        command.replace("mine", "m" * 300) if name == "cluster add" else command.replace("new", "new/" + "n" * 300)
    )
    said.refused("too long")


@pytest.mark.parametrize(
    "change",
    [
        "data.train=~nosuchuser/t.jsonl",
        "model.path=~nosuchuser/model",
        "output_dir=~nosuchuser/runs",
        "cluster.profile=~nosuchuser/own.yaml",
        "rewards.reward_funcs=[~nosuchuser/r.py:f]",
        "cluster.image=~nosuchuser/i.sif",
    ],
)
def test_a_user_that_there_is_not(change, here):
    told(f"submit run.yaml name=other --dry-run {change}").refused("~nosuchuser")


@pytest.mark.parametrize("key", ["name: ", "output_dir: ", "  path: ", "  train: ", "  reward_funcs: "])
def test_a_path_with_a_nul(key, here):
    lines = RUN.replace("{", "\n  ").replace("}", "").replace(", ", "\n  ").splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(key))
    lines[at] = f'{key}"a\\0b"'
    Path("run.yaml").write_text("\n".join(lines))
    told("submit run.yaml --dry-run").refused()


def test_files_are_utf8_whatever_the_locale(here):
    """An ASCII locale, as a login node may have it."""
    Path("run.yaml").write_text(RUN.replace("t.jsonl", "données/模型.jsonl") + "\n# ×\n", encoding="utf-8")
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "grpo_hpc.cli", "submit", "run.yaml", "--dry-run", "output_dir=new"]
    done = subprocess.run(command, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert load_run("new/small/run.yaml").data.train.endswith("données/模型.jsonl")


def test_one_unreadable_thing_does_not_take_a_folder(here):
    for name in ("whole", "closed", "attempts", "log", "stop", "sweep", "events", "yaml"):
        shutil.copytree("runs/small", f"runs/{name}")
    closed = ["closed", "attempts/attempt_1", "log/attempt_1/rank_0.log", "stop/stop", "sweep/sweep.json"]
    closed += ["events/events.jsonl", "yaml/run.yaml"]
    for place in closed:
        path = Path("runs", place)
        path.touch()
        path.chmod(0)
    said = told("list --json", without_privileges)
    found = json.loads(said.out)
    shown, passed_over = (
        {run["name"] for run in found["runs"]},
        {Path(one["path"]).name for one in found["passed_over"]},
    )
    assert said.code == 0
    assert shown | passed_over == {"small", *(place.partition("/")[0] for place in closed), "whole"}
    assert {"small", "whole", "log", "attempts"} <= shown
    assert {"closed", "yaml", "events"} <= passed_over
    assert all("denied" in one["reason"] for one in found["passed_over"])
    assert told("status", without_privileges).code == 0


@pytest.mark.parametrize("name", [name for name, (_, place) in READERS.items() if "." in place])
def test_something_else_in_the_place_of_a_file(name, here):
    command, place = READERS[name]
    path = Path(place)
    path.unlink()
    for put, take in (
        (path.mkdir, path.rmdir),
        (lambda: path.symlink_to(path.name), path.unlink),
        (lambda: path.write_bytes(b"\xff\xfe\x00\x80" * 3), path.unlink),
        (path.touch, path.unlink),
    ):
        put()
        said = told(command)
        take()
        if said.code:
            said.refused()


@pytest.mark.parametrize("put", [Path.mkdir, lambda path: path.symlink_to(path.name)], ids=["a folder", "a loop"])
def test_what_takes_the_place_of_the_jobs_is_not_no_jobs(put, here):
    Path("runs/small/job.json").unlink()
    put(Path("runs/small/job.json"))
    for command in ("status runs/small", "resume runs/small", "cancel runs/small"):
        told(command).refused("job.json")


@pytest.mark.parametrize("place", ["events.jsonl", "metrics.jsonl", "plan.json", "lock.json", "completions"])
def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(place, here):
    path = Path("runs/small", "completions/step_00000001.jsonl.gz" if place == "completions" else place)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    shutil.copytree("runs/small", "runs/whole", ignore=lambda *_: [path.name])
    for command in ("list runs", "status runs/small", "report runs/small -o new/page.html", "completions runs/small"):
        said = told(command, lambda: signal.alarm(60))
        assert said.code == 0 or path.name in said.err, said
        if said.code:
            said.refused("no regular file")
    assert "whole" in told("list runs").out
