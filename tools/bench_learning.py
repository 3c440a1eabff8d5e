"""Learning curves of our trainer and of TRL's at equal settings: mean reward and held-out accuracy by step.

    python tools/bench_learning.py run --gpus 2 --out records
    python tools/bench_learning.py report records docs/benchmarks/2026-11-23_learning_h200

``run`` trains every seed with ``grpo-hpc submit`` and with TRL (tools/bench/learn_trl.py takes its settings from the
same run file) and keeps a JSON record of each run up to date in ``--out``. With two GPUs ours use the first and TRL's
the second. ``--parallel`` runs share a GPU: the next one starts when the engine of the one before is up, because vLLM
measures free memory while it starts. ``report`` writes <name>.md and <name>.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_hpc.config import load_run
from grpo_hpc.errors import EXIT_USER_ERROR, GrpoHpcError
from grpo_hpc.files import write_atomically
from grpo_hpc.observe.history import History
from grpo_hpc.runs.fingerprint import fingerprint
from grpo_hpc.runs.run_dir import RunDir
from tools.bench.learning_report import WHO, accuracies, write_report

HERE = Path(__file__).parent
_POLL_S = 1.0
_TRIES = 3  # of a run that ended before its first step: another one may have freed memory while its vLLM measured


@dataclass
class Run:
    """One training run: its processes, its log, and its record on disk.

    Attributes:
        who: "ours" or "trl".
        overrides: of the run file; the same for both kinds but for the name.
        environment: added to this process's.
    """

    who: str
    seed: int
    config: str
    overrides: list[str]
    runs: Path
    out: Path
    environment: dict[str, str]
    tries: int = 0
    begun: bool = False
    failed: bool = False
    started: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    @property
    def file(self) -> Path:
        return self.out / f"{self.who}_seed{self.seed}.json"

    @property
    def log(self) -> Path:
        return self.runs / f"{self.who}_seed{self.seed}.log"

    def keys(self) -> list[str]:
        return [*self.overrides, f"seed={self.seed}", f"name={self.who}_seed{self.seed}", f"output_dir={self.runs}"]

    def command(self) -> list[str]:
        if self.who == "trl":
            return [sys.executable, str(HERE / "bench" / "learn_trl.py"), str(self.file), self.config, *self.keys()]
        return [sys.executable, "-m", "grpo_hpc.cli", "submit", self.config, "--fresh", *self.keys()]

    def start(self) -> None:
        self.file.unlink(missing_ok=True)
        self.tries, self.begun, self.started = self.tries + 1, False, time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent,
                env={**os.environ, **self.environment},
            )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """What is known by now; TRL's program writes its own file."""
        if self.who == "trl":
            return dict(json.loads(self.file.read_text())) if self.file.exists() else {"steps": [], "held_out": {}}
        return our_record(RunDir.of(load_run(self.config, self.keys())))

    def poll(self) -> bool:
        """Bring the record up to date; whether the run is over."""
        code = self.process.poll() if self.process else None  # before the record, which is complete at the end
        record = self.record() | {"who": self.who, "seed": self.seed, "versions": versions()}
        if code is not None:
            record["seconds"] = time.monotonic() - self.started
            self.failed = code != 0
            if self.failed:
                record["error"] = self.log.read_text(errors="replace")[-3000:]
        if code is not None or self.who == "ours":  # while TRL's program runs the file is its own
            write_atomically(self.file, json.dumps(record))
        self.begun = bool(record["held_out"] or record["steps"])
        return code is not None


@cache
def versions() -> dict[str, str]:
    """Of the packages that matter here."""
    packages = fingerprint()["packages"]
    names = ("torch", "megatron-core", "transformer-engine", "vllm", "transformers", "trl")
    return {name: packages[name] for name in names if name in packages}


def our_record(run_dir: RunDir) -> dict[str, Any]:
    """Steps and held-out accuracy from a run directory's metrics, which may still be growing."""
    history = History.read(run_dir.metrics)
    names = {
        "reward": "reward/mean", "grad_norm": "grad_norm", "length": "completions/mean_length", "seconds": "time/step",
    }  # fmt: skip
    series = {name: history.series(metric) for name, metric in names.items()}
    steps = [{"step": step} | {name: course.get(step) for name, course in series.items()} for step in series["seconds"]]
    held_out = history.series("eval/exact_number/mean")
    return {"steps": steps, "held_out": {str(step): value for step, value in held_out.items()}}


def lane(runs: Sequence[Run], parallel: int) -> None:
    """Make ``runs`` on one GPU, at most ``parallel`` at a time."""
    waiting, going = list(runs), list[Run]()
    while waiting or going:
        if waiting and len(going) < parallel and all(run.begun for run in going):
            going.append(waiting.pop(0))
            going[-1].start()
        time.sleep(_POLL_S)
        for over in [each for each in going if each.poll()]:
            going.remove(over)
            again = over.failed and not over.begun and over.tries < _TRIES
            print(_said(over) + ("; tried again" if again else ""), flush=True)
            waiting += [over] if again else []


def _said(over: Run) -> str:
    record = json.loads(over.file.read_text())
    last = list(accuracies(record).items())[-1:]
    end = f"failed: {record['error'][-600:]}" if "error" in record else f"held out {last}"
    return f"{over.who} seed {over.seed}: {len(record['steps'])} steps, {record['seconds']:.0f} s, {end}"


def run(options: argparse.Namespace) -> int:
    """Train everything; 1 when a run failed."""
    out, folder = Path(options.out).absolute(), Path(options.runs).absolute()
    for path in (out, folder):
        path.mkdir(parents=True, exist_ok=True)
    # only what is learned is wanted: neither checkpoints nor an exported model
    overrides = ["save_steps=null", "save_total_limit=null", "save_last=false", "export=false"]
    overrides += [f"model.path={options.model}"] if options.model else []
    overrides += [f"vllm_gpu_memory_utilization={options.memory_share}"] if options.memory_share else []
    lanes: list[list[Run]] = [[] for _ in range(max(1, options.gpus))]
    for number, who in enumerate(options.who):
        gpu = number % max(1, options.gpus)
        shown = {"CUDA_VISIBLE_DEVICES": str(gpu)} if options.gpus else {}
        for seed in options.seeds:
            made = Run(who, seed, options.config, [*overrides, *options.set], folder, out, shown)
            load_run(made.config, made.keys())  # mistakes are said now, not after the first runs
            lanes[gpu].append(made)
    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(lambda runs: lane(runs, options.parallel), lanes))
    return int(any("error" in json.loads(made.file.read_text()) for runs in lanes for made in runs))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="train")
    runner.add_argument("--out", required=True, help="folder of the records")
    runner.add_argument("--runs", default="runs/learning", help="folder of run directories and logs")
    runner.add_argument("--config", default="configs/quickstart_gpu.yaml", help="run file of both")
    runner.add_argument("--model", help="Hugging Face folder instead of the run file's")
    runner.add_argument("--who", nargs="+", choices=list(WHO), default=list(WHO))
    runner.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    runner.add_argument(
        "--gpus", type=int, default=1, choices=(0, 1, 2), help="0: what the environment shows, or the CPU"
    )
    runner.add_argument("--parallel", type=int, default=3, help="runs that share a GPU")
    runner.add_argument("--memory-share", type=float, help="of the GPU, for each vLLM")
    runner.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further keys of the run file")
    runner.set_defaults(do=run)
    reporter = verbs.add_parser("report", help="write the report from records")
    reporter.add_argument("records", type=Path)
    reporter.add_argument("report", type=Path, help="path of the report without its ending")
    reporter.add_argument("--gpu", default="H200", help="what the runs were made on")
    reporter.add_argument("--command", default="python tools/bench_learning.py run --gpus 2 --out records")
    reporter.set_defaults(do=lambda o: write_report(o.records, o.report, o.gpu, o.command))
    options = parser.parse_args(argv)
    try:
        return int(options.do(options))
    except GrpoHpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
