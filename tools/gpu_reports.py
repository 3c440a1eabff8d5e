"""Make the measurements behind docs/benchmarks/ on a machine with GPUs, as many at a time as there are GPUs for.

    python tools/gpu_reports.py /scratch/out step sync profile planner
    python tools/gpu_reports.py /scratch/out frozen --gpus 0,1
    python tools/gpu_reports.py /scratch/out tests learning --dry-run

Stages: step (a whole step beside TRL and vLLM alone), sync, profile (the training phase, and a layer of experts),
planner (settings by which the planner may be corrected), frozen (the others; only after it was last changed), learning
(curves beside TRL's, three seeds; needs the model and data of `make demo`), tests (`make test-gpu`, on one GPU).

Random models are made first. Every task has GPUs of its own, a log OUT/<task>.log, and leaves its results in OUT when
it ends; one that fails does not stop the others. Those of two GPUs begin first, then the longest.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.bench.settings import SETTINGS, Setting

ROOT = Path(__file__).parents[1]
_POLL_S = 0.5


@dataclass
class Task:
    """One command on GPUs of its own.

    Attributes:
        seconds: about what it takes on an H200, start included; the longest begin first.
        command: started in the checkout with ``CUDA_VISIBLE_DEVICES`` set to its GPUs.
        shape: of the model that must lie in the scratch folder before.
    """

    name: str
    gpus: int
    seconds: int
    command: list[str]
    shape: str | None = None
    held: list[str] = field(default_factory=list)
    started: float = 0.0
    process: subprocess.Popen[bytes] | None = None


def _python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, f"tools/{script}.py", *map(str, arguments)]


def _step(out: Path, scratch: Path) -> list[Task]:
    work = [
        *("--model", "qwen3-4b", "--prompts", 16, "--generations", 8, "--steps", 5, "--warmup", 2),
        *("--memory-share", 0.3, "--set", "max_tokens_per_micro_batch=8192", "--set", "sleep_level=2"),
        *("--trl-micro", 8, "--peer", "vllm", "--peer", "trl"),
    ]

    def one(lengths: str) -> Task:
        where = ("--folder", scratch / lengths, "--out", out / f"step_{lengths}.json")
        return Task(f"step_{lengths}", 1, 420, _python("bench_step", *work, "--lengths", lengths, *where))

    return [one("equal"), one("spread")]


def _sync(out: Path, scratch: Path) -> list[Task]:
    def one(name: str, model: str, gpus: int, *keys: str) -> Task:
        sets = [word for key in keys for word in ("--set", key)]
        folder = ("--folder", scratch, "--out", out / f"sync_{name}.json")
        command = _python("bench_sync", "--model", model, "--gpus", gpus, *sets, *folder)
        return Task(f"sync_{name}", gpus, 80, command, model)

    return [
        one("dense", "qwen3-4b", 1),
        one("experts", "moe-3b", 1),
        one("tp2", "qwen3-4b", 2, "tensor_model_parallel_size=2"),
    ]


def _profile(out: Path, scratch: Path) -> list[Task]:
    def one(name: str) -> Task:
        command = _python("profile_step", name, "--folder", scratch, "--out", out / f"profile_{name}.json")
        return Task(f"profile_{name}", SETTINGS[name].gpus, 90, command, SETTINGS[name].shape)

    experts = Task("experts", 1, 40, _python("bench_experts", "--out", out / "experts.json"))
    return [*(one(name) for name in ("small", "dense-4b", "experts", "cp2")), experts]


def _settings(out: Path, scratch: Path, frozen: bool) -> list[Task]:
    def one(name: str, setting: Setting) -> Task:
        where = ("--folder", scratch, "--out", out / "planner")
        command = _python("plan_measured", "measure", name, "--timeout", 200, "--gpus", "$GPUS", *where)
        return Task(f"plan_{name}", setting.gpus, 90, command, setting.shape)

    return [one(name, setting) for name, setting in SETTINGS.items() if setting.frozen == frozen]


def _learning(out: Path, scratch: Path) -> list[Task]:
    def one(who: str, seed: int, seconds: int) -> Task:
        alone = ("--who", who, "--seeds", seed, "--gpus", 0, "--parallel", 1)
        where = ("--runs", scratch / "learning", "--out", out / "learning")
        return Task(f"learning_{who}{seed}", 1, seconds, _python("bench_learning", "run", *alone, *where))

    return [one(who, seed, seconds) for who, seconds in (("ours", 120), ("trl", 240)) for seed in (1, 2, 3)]


def _tests(out: Path, scratch: Path) -> list[Task]:
    return [Task("tests", 1, 450, ["make", "test-gpu", f"gpu_py={sys.executable}"])]


STAGES: dict[str, Callable[[Path, Path], list[Task]]] = {
    "step": _step,
    "sync": _sync,
    "profile": _profile,
    "planner": partial(_settings, frozen=False),
    "frozen": partial(_settings, frozen=True),
    "learning": _learning,
    "tests": _tests,
}
"""The tasks of each stage, from the folders for results and for scratch."""


def models_for(tasks: Sequence[Task], scratch: Path) -> list[Task]:
    """What makes the random models that ``tasks`` share."""
    shapes = sorted({task.shape for task in tasks if task.shape})
    maker = [sys.executable, "-m", "tools.bench.random_model"]
    return [Task(f"model_{s}", 1, 30, [*maker, str(scratch / "models" / s), s]) for s in shapes]


def run(tasks: Sequence[Task], gpus: Sequence[str], out: Path) -> int:
    """Run all tasks; the number of those that failed. Whatever still runs when this is interrupted is ended."""
    free, waiting, going, failed = list(gpus), in_order(tasks), list[Task](), 0
    began = time.monotonic()
    try:
        while waiting or going:
            for task in list(waiting):
                if task.gpus <= len(free):
                    waiting.remove(task)
                    going.append(_start(task, free, out))
            time.sleep(_POLL_S)
            for task in list(going):
                code = _ended(task)
                if code is None:
                    continue
                going.remove(task)
                free += task.held
                failed += code != 0
                word = "done" if code == 0 else f"FAILED ({code}), see {out / task.name}.log,"
                now = time.monotonic()
                print(f"{now - began:6.0f} s  {task.name}: {word} after {now - task.started:.0f} s", flush=True)
    finally:
        for task in going:
            _end(task)
    return failed


def _ended(task: Task) -> int | None:
    """Exit code of the task's process; one that takes four times as long as expected is ended."""
    assert task.process is not None
    if time.monotonic() - task.started > 4 * task.seconds:
        _end(task)
    return task.process.poll()


def _end(task: Task) -> None:
    if task.process is not None and task.process.poll() is None:
        os.killpg(task.process.pid, signal.SIGKILL)
        task.process.wait()


def in_order(tasks: Sequence[Task]) -> list[Task]:
    """Those of several GPUs first, so that none waits for two to be free at once; then the longest."""
    return sorted(tasks, key=lambda task: (-task.gpus, -task.seconds))


def _start(task: Task, free: list[str], out: Path) -> Task:
    task.held = [free.pop(0) for _ in range(task.gpus)]
    task.started = time.monotonic()
    shown = ",".join(task.held)
    command = [word.replace("$GPUS", shown) for word in task.command]
    with (out / f"{task.name}.log").open("wb") as log:
        task.process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": shown}, start_new_session=True,
        )  # fmt: skip
    return task


def expected_seconds(tasks: Sequence[Task], gpus: int) -> float:
    """About how long all of it takes."""
    ends = [0.0] * gpus
    for task in in_order(tasks):
        ends.sort()
        end = ends[task.gpus - 1] + task.seconds
        ends[: task.gpus] = [end] * task.gpus
    return max(ends)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; 1 when a task failed, 2 when something is missing."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what was started is ended
    out: Path = options.out.absolute()
    scratch = (options.scratch or out / "scratch").absolute()
    tasks = [task for stage in options.stages for task in STAGES[stage](out, scratch)]
    tasks = [task for task in tasks if not options.only or task.name in options.only]
    gpus = options.gpus or visible_gpus()
    most = max((task.gpus for task in tasks), default=0)
    if len(gpus) < most or not tasks:
        said = f"{most} GPUs are needed and {len(gpus)} are visible" if tasks else "no task has such a name"
        print(f"gpu_reports.py: {said}", file=sys.stderr)
        return 2
    print(f"{len(tasks)} tasks on {len(gpus)} GPUs, about {expected_seconds(tasks, len(gpus)) / 60:.0f} minutes")
    if options.dry_run:
        for task in in_order(tasks):
            print(f"{task.name} ({task.gpus} GPUs, {task.seconds} s): {' '.join(task.command)}")
        return 0
    (out / "planner").mkdir(parents=True, exist_ok=True)
    failed = run(models_for(tasks, scratch), gpus, out)
    return int(failed > 0 or run(tasks, gpus, out) > 0)


def visible_gpus() -> list[str]:
    """Numbers of the GPUs, as ``CUDA_VISIBLE_DEVICES`` or nvidia-smi has them."""
    if shown := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return shown.split(",")
    try:
        said = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(len(said.splitlines()))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for results and logs")
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--only", nargs="+", default=[], metavar="TASK", help="of the stages' tasks, these")
    parser.add_argument("--gpus", type=lambda text: text.split(","), help="as in 0,1; by default all")
    parser.add_argument("--scratch", type=Path, help="models and runs; by default OUT/scratch")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
